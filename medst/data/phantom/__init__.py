"""The chest phantom: an analytic thorax, its reports, written in the layouts of the real data sets."""
