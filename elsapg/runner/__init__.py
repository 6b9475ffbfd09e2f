"""What runs inside the runner image: the standard library, psycopg and `elsapg.errors` only."""
