import { Effect } from "effect"
import { SqlClient } from "effect/sql"

/**
 * Who holds a lock and who waits for it: the rows of a lock, in the order of their tickets. The first one's owner
 * holds the lock once it is told so. A row that has expired is as good as none.
 */
export const create = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  // Instances that start together come here one after the other; the first one creates.
  yield* sql`SELECT pg_advisory_xact_lock(hashtextextended('cohort_lock', 0))`
  const existing = yield* sql`SELECT 1 WHERE to_regclass('cohort_lock') IS NOT NULL`
  if (existing.length > 0) return

  yield* sql`
    CREATE TABLE cohort_lock (
      owner text PRIMARY KEY,
      lock text NOT NULL,
      ticket bigint NOT NULL,
      held boolean NOT NULL DEFAULT false,
      expires_at timestamptz NOT NULL
    )`
  yield* sql`CREATE INDEX cohort_lock_queue ON cohort_lock (lock, ticket)`

  // Tickets are fences as well. They begin at the clock, so they increase even when everything was dropped.
  yield* sql`
    DO $$ BEGIN
      EXECUTE format('CREATE SEQUENCE cohort_lock_ticket START %s',
        (extract(epoch FROM clock_timestamp()) * 1000)::bigint);
    END $$`

  // Takes the lock, or a place in its queue; again by the same owner, whether it is its turn by now.
  yield* sql`
    CREATE FUNCTION cohort_lock_ask(
      the_lock text, me text, ttl float8, patience float8,
      OUT granted boolean, OUT fence float8, OUT ask_again_in float8
    ) LANGUAGE plpgsql AS $$
    DECLARE
      now timestamptz;
      mine bigint;
      ahead timestamptz;
    BEGIN
      PERFORM pg_advisory_xact_lock(hashtextextended(the_lock, 0));
      now := clock_timestamp();
      DELETE FROM cohort_lock WHERE lock = the_lock AND expires_at <= now;
      SELECT ticket INTO mine FROM cohort_lock WHERE owner = me;
      SELECT min(expires_at) INTO ahead FROM cohort_lock
        WHERE lock = the_lock AND owner <> me AND (mine IS NULL OR ticket < mine);
      granted := ahead IS NULL;
      IF NOT granted AND patience = 0 THEN RETURN; END IF;

      mine := coalesce(mine, nextval('cohort_lock_ticket'));
      INSERT INTO cohort_lock (owner, lock, ticket, held, expires_at)
        VALUES (me, the_lock, mine, granted,
          now + CASE WHEN granted THEN ttl ELSE patience END * interval '1 millisecond')
        ON CONFLICT (owner) DO UPDATE SET held = excluded.held, expires_at = excluded.expires_at;
      fence := mine;
      ask_again_in := least(patience / 2, extract(epoch FROM ahead - now) * 1000);
    END $$`

  // Gives the lock back, or the place in its queue, and tells whose turn it is.
  yield* sql`
    CREATE FUNCTION cohort_lock_leave(the_lock text, me text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM pg_advisory_xact_lock(hashtextextended(the_lock, 0));
      DELETE FROM cohort_lock WHERE owner = me;
      PERFORM pg_notify('cohort_lock', first.owner)
        FROM (SELECT owner, held FROM cohort_lock WHERE lock = the_lock ORDER BY ticket LIMIT 1) AS first
        WHERE NOT first.held;
    END $$`
})

/** Removes what dead processes left of locks that nobody has asked for since. */
export const sweep = SqlClient.SqlClient.use(
  (sql) => sql`DELETE FROM cohort_lock WHERE expires_at < clock_timestamp() - interval '1 hour'`
)
