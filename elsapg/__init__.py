"""elsapg: highly available PostgreSQL for Elsa Workflows, by Pulumi.

Direction of imports: cli -> services -> targets/program -> definition -> settings -> errors.
`elsapg.runner` runs inside the runner image and imports the standard library and psycopg only.
"""

__version__ = "0.1.0"
