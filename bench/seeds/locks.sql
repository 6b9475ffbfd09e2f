-- The seeds' own lock table and acquire_lock, as written ("PostgreSQL Database Schema", Distributed
-- Locks Table), to be measured against. Changed only so that it runs at all: the inline INDEX,
-- which PostgreSQL does not have, is a statement of its own. bench/locks.py creates the schema,
-- sets search_path to it, and grants it to the measuring role.
--
-- There is no release in the seeds: deleting one's row is how it must have been meant.
CREATE TABLE distributed_locks (
    resource_name VARCHAR(255) PRIMARY KEY,
    lock_id VARCHAR(255) NOT NULL,
    locked_by VARCHAR(255) NOT NULL,
    locked_at TIMESTAMP NOT NULL DEFAULT NOW(),
    expires_at TIMESTAMP NOT NULL
);
CREATE INDEX idx_expires_at ON distributed_locks (expires_at);

-- Function to acquire lock
CREATE OR REPLACE FUNCTION acquire_lock(
    p_resource_name VARCHAR(255),
    p_lock_id VARCHAR(255),
    p_locked_by VARCHAR(255),
    p_duration_seconds INT
) RETURNS BOOLEAN AS $$
BEGIN
    -- Clean up expired locks
    DELETE FROM distributed_locks 
    WHERE resource_name = p_resource_name AND expires_at < NOW();
    
    -- Try to acquire lock
    INSERT INTO distributed_locks (resource_name, lock_id, locked_by, expires_at)
    VALUES (p_resource_name, p_lock_id, p_locked_by, NOW() + (p_duration_seconds || ' seconds')::INTERVAL)
    ON CONFLICT (resource_name) DO NOTHING;
    
    -- Return true if we acquired the lock
    RETURN EXISTS (
        SELECT 1 FROM distributed_locks 
        WHERE resource_name = p_resource_name AND lock_id = p_lock_id
    );
END;
$$ LANGUAGE plpgsql;
