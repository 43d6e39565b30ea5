-- Of a device whose deletions are held: how many it has pending by its own word, and since when
-- they are rejected.
ALTER TABLE gate ADD COLUMN announced INTEGER;
ALTER TABLE gate ADD COLUMN rejected_ms INTEGER;
