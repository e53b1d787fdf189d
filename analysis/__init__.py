"""From what was tracked to tables and figures. Imports medst.config and medst.tracking only; never torch or ray."""
