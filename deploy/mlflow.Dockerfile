# MLflow with what its PostgreSQL store, its S3 artifacts and its authentication need; versions as in requirements.lock.
FROM python:3.12-slim
RUN pip install --no-cache-dir 'mlflow[auth]==3.17.2' 'psycopg2-binary>=2.9,<3' 'boto3>=1.35,<2' \
    && useradd --create-home mlflow
USER mlflow
WORKDIR /home/mlflow
EXPOSE 5000
