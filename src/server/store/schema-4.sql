-- How much is in use: the sum of the sizes of a drive's live files, kept with each change; and the quota of
-- a user, where it is not that of the settings, in bytes, 0 for none. Files that are together larger than
-- a number can say, as sparse ones may be, are as large as one can say.
ALTER TABLE drive ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
UPDATE drive SET bytes = (
    SELECT CASE WHEN high + (low >> 32) < 2147483647 THEN (high << 32) + low ELSE 9223372036854775807 END
    FROM (SELECT coalesce(sum(len >> 32), 0) AS high, coalesce(sum(len & 4294967295), 0) AS low
          FROM node WHERE node.drive = drive.num AND node.parent IS NOT NULL));
ALTER TABLE user ADD COLUMN quota INTEGER;
