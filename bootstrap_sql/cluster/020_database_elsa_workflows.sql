-- elsapg: database=postgres
-- elsapg: transaction=off
-- elsapg: unless=SELECT FROM pg_catalog.pg_database AS d WHERE d.datname = 'elsa_workflows'

-- CREATE DATABASE cannot run in a transaction and has no IF NOT EXISTS: hence the lines above.
-- (sqlfluff does not know BUILTIN_LOCALE yet.)
-- The builtin provider sorts by code point and never changes with the C library, so that an
-- upgrade of the operating system cannot corrupt an index.
CREATE DATABASE elsa_workflows
OWNER elsa_owner
TEMPLATE template0
ENCODING 'UTF8'
LOCALE 'C.UTF-8'
BUILTIN_LOCALE 'C.UTF-8' -- noqa: PRS
LOCALE_PROVIDER builtin;
