"""PostgreSQL's parameters and Patroni's dynamic configuration, derived from the settings.

The small profile is the seeds' (S1-50 ... S1-56); from 2 GiB on, sizes follow the memory given,
by the rules of PostgreSQL's manual, chapter "Resource Consumption".
"""

from __future__ import annotations

from typing import Any

from elsapg.settings import Settings

SMALL_PROFILE_BELOW_MB = 2048

# A single segment is pushed at once: 0.1 s, where starting the asynchronous process takes 0.7 s,
# and a primary that hands over does not stop before its last segment is away. As soon as more
# than one waits, they go asynchronously, in parallel.
_PUSH = "pgbackrest --stanza=elsa {} archive-push %p"
ARCHIVE_COMMAND = (
    "if [ $(ls pg_wal/archive_status | grep -c ready) -gt 1 ]; "
    f"then {_PUSH.format('--archive-async')}; else {_PUSH.format('--no-archive-async')}; fi; "
    # The archive has it, with other bytes: is that a matter of course, or two servers?
    "code=$?; if [ $code = 45 ]; then wal-duplicate %p; else exit $code; fi"
)

Parameter = str | int | float | bool


def memory_profile(memory_mb: int, max_connections: int) -> dict[str, Parameter]:
    """Memory parameters for a node of `memory_mb` MiB."""
    if memory_mb < 1024:
        # Below the seeds' own size: a quarter for the buffers, as PostgreSQL's manual advises.
        return {
            "shared_buffers": f"{memory_mb // 4}MB",
            "effective_cache_size": f"{memory_mb * 3 // 4}MB",
            "maintenance_work_mem": "32MB",
            "wal_buffers": "4MB",
            "work_mem": "2MB",
        }
    if memory_mb < SMALL_PROFILE_BELOW_MB:
        return {
            "shared_buffers": "256MB",
            "effective_cache_size": "1GB",
            "maintenance_work_mem": "64MB",
            "wal_buffers": "16MB",
            "work_mem": "4MB",
        }
    return {
        "shared_buffers": f"{memory_mb // 4}MB",
        "effective_cache_size": f"{memory_mb * 3 // 4}MB",
        "maintenance_work_mem": f"{min(memory_mb // 16, 2048)}MB",
        "wal_buffers": "16MB",
        # A quarter of the memory, shared by connections that each run about two sorts.
        "work_mem": f"{max(4, memory_mb // 4 // max_connections // 2)}MB",
    }


def parameters(settings: Settings) -> dict[str, Parameter]:
    """Everything PostgreSQL is told through Patroni's dynamic configuration."""
    pg = settings.postgres
    return {
        # S1's settings
        "max_connections": pg.max_connections,
        **memory_profile(pg.memory_mb, pg.max_connections),
        "checkpoint_completion_target": 0.9,
        "default_statistics_target": 100,
        # replication (S0-76 ... S0-80)
        "wal_level": "replica",
        "max_wal_senders": pg.max_wal_senders,
        "max_replication_slots": pg.max_replication_slots,
        "max_slot_wal_keep_size": f"{pg.max_slot_wal_keep_size_mb}MB",
        "synchronous_commit": pg.synchronous_commit,
        "hot_standby": True,
        "hot_standby_feedback": True,
        "wal_log_hints": True,
        # A dead peer is noticed within 5 s, not after TCP's quarter of an hour.
        "wal_sender_timeout": "5s",
        "wal_receiver_timeout": "5s",
        "wal_receiver_status_interval": "1s",
        "wal_retrieve_retry_interval": "500ms",
        "tcp_keepalives_idle": 5,
        "tcp_keepalives_interval": 2,
        "tcp_keepalives_count": 3,
        "tcp_user_timeout": "5s",
        "client_connection_check_interval": "5s",
        # archiving (S0-88)
        "archive_mode": True,
        "archive_command": ARCHIVE_COMMAND,
        "archive_timeout": f"{settings.archive.archive_timeout_s}s",
        # extensions
        "shared_preload_libraries": "pg_stat_statements,pgaudit,pg_cron",
        "cron.database_name": "postgres",
        "cron.use_background_workers": True,
        # Jobs belong to elsa_jobs, which is no superuser; nobody schedules one that is.
        "cron.enable_superuser_jobs": False,
        "cron.timezone": "UTC",
        **({} if settings.jobs.active else {"cron.launch_active_jobs": False}),
        "cron.max_running_jobs": 8,
        "max_worker_processes": 24,
        # audit (S1-66): policies are DDL; writes that elsa_auditor is granted (users, tenants) are
        # logged whoever makes them.
        "pgaudit.log": "ddl,role",
        "pgaudit.role": "elsa_auditor",
        "pgaudit.log_catalog": False,
        # A statement's text once, also when it runs others; never its parameters.
        "pgaudit.log_statement_once": True,
        "pgaudit.log_parameter": False,
        "pg_stat_statements.track_utility": False,
        # access
        "password_encryption": "scram-sha-256",
        "superuser_reserved_connections": pg.superuser_reserved_connections,
        # what a person at 3 a.m. wants in the log (S1-61)
        "log_min_duration_statement": "1s",
        # Never the parameters of a statement: they carry data.
        "log_parameter_max_length": 0,
        "log_parameter_max_length_on_error": 0,
        "log_checkpoints": True,
        "log_lock_waits": True,
        "log_autovacuum_min_duration": "10s",
        "log_line_prefix": "%m [%p] %q%u@%d/%a ",
        "timezone": "UTC",
        "log_timezone": "UTC",
        **pg.parameters,
    }


def dynamic_configuration(settings: Settings) -> dict[str, Any]:
    """Patroni's dynamic configuration: what all members share, kept in the DCS."""
    p = settings.patroni
    return {
        "ttl": p.ttl,
        "loop_wait": p.loop_wait,
        "retry_timeout": p.retry_timeout,
        "primary_start_timeout": p.primary_start_timeout,
        # A backend that waits for a standby for ever (pg_cron's launcher can) must not keep a
        # demoted primary from stopping. In seconds; synchronous mode only.
        "primary_stop_timeout": 10,
        "maximum_lag_on_failover": p.maximum_lag_on_failover_mb * 1024 * 1024,
        "failsafe_mode": True,
        "check_timeline": True,
        "synchronous_mode": settings.postgres.synchronous != "off",
        "synchronous_mode_strict": settings.postgres.synchronous == "strict",
        "synchronous_node_count": 1,
        "postgresql": {
            "use_pg_rewind": True,
            "use_slots": True,
            "remove_data_directory_on_rewind_failure": True,
            "remove_data_directory_on_diverged_timelines": True,
            "parameters": parameters(settings),
        },
    }
