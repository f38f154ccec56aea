"""The night by Airflow 3: one task, which submits the job to the cluster and waits for its end.

Change what is marked "yours" and copy the file into Airflow's DAG folder. The worker needs the
repository with its environment (`make install`) and reaches the dashboard; Airflow's own
environment needs apache-airflow-providers-standard, and nothing of Lifelora.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

HOME = "/opt/lifelora"                  # yours: the repository on Airflow's workers

# An id that Airflow's page tells, for `ray job stop`; Ray takes each once, so it names the try too.
NIGHT = (
    "ray job submit --address http://127.0.0.1:8265"
    " --submission-id 'lifelora-{{ dag_run.run_after | ts_nodash }}-{{ ti.try_number }}'"
    " --working-dir . -- python jobs/nightly_update.py --config jobs/configs/cluster.yaml"
)

with DAG(
    dag_id="lifelora_nightly",
    description="Learn the day's events, if that is no loss",
    schedule="15 2 * * *",              # UTC, unless start_date has another time zone
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,                      # one night takes the events of all that were missed
    max_active_runs=1,                  # the job's lease would turn a second one away, as failed
    tags=["lifelora"],
):
    BashOperator(
        task_id="night",
        bash_command=NIGHT,
        cwd=HOME,
        env={
            "PATH": f"{HOME}/.venv/bin:/usr/local/bin:/usr/bin:/bin",
            "RAY_AUTH_MODE": "token",   # with ~/.ray/auth_token of the worker's user
        },
        append_env=True,
        retries=2,
        retry_delay=timedelta(minutes=10),      # a killed night's lease lasts two
        execution_timeout=timedelta(hours=8),   # ends the waiting; the cluster's job goes on
    )
