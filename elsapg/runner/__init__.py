"""What runs inside the images: the standard library, psycopg, croniter, boto3, elsapg.errors."""
