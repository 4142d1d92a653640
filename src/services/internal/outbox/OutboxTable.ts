/**
 * The outbox in the database: every statement of it, and its migrations. Another dialect is another
 * {@link OutboxTable}, chosen in {@link make}.
 *
 * Rows are in the order of their commits, which is not that of their ids: a transaction that began earlier may commit
 * later. So a deferred trigger gives each row its `position` when its COMMIT begins. Whoever depends on another
 * transaction, by reading what it wrote or waiting for its locks, commits after it, and has a higher position; two
 * whose COMMITs overlap have no order. Nothing waits for anything, which a lock or `NOTIFY` would make it do.
 */
import * as Effect from "effect/Effect"
import * as SqlClient from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import { InvalidInput } from "../../Reason.ts"
import type { ChannelStatus } from "../../SyncOutbox.ts"

interface Address {
  readonly app: string
  readonly kind: string
  readonly channel: string
}

export interface NewRow extends Address {
  /** By which receivers drop repeats. */
  readonly message: string
  /** The instance that published. */
  readonly origin: string
  /** JSON text. */
  readonly payload: string
}

export interface Row {
  readonly id: string
  readonly message: string
  readonly origin: string
  readonly payload: string
  /** Milliseconds since it was written, by the clock of the database. */
  readonly age: number
  readonly failures: number
}

type ChannelDepth = Omit<ChannelStatus, "app">

export interface OutboxTable {
  readonly migrations: Record<string, Effect.Effect<void, SqlError, SqlClient.SqlClient>>
  /** One statement. */
  readonly insert: (row: NewRow) => Effect.Effect<unknown, SqlError>
  /**
   * Takes the channel until the end of the transaction; `false` when someone else has it. A session that does
   * nothing for `idle` milliseconds meanwhile, frozen perhaps, loses it.
   */
  readonly lock: (address: Address, idle: number) => Effect.Effect<boolean, SqlError>
  /** The first rows, in order: at most `max`, and no more text than `bytes`, but for the first. */
  readonly head: (address: Address, max: number, bytes: number) => Effect.Effect<ReadonlyArray<Row>, SqlError>
  readonly remove: (ids: ReadonlyArray<string>) => Effect.Effect<unknown, SqlError>
  /** Counts a failure; `aside` takes the row out of the way. */
  readonly fail: (id: string, error: string, aside: boolean) => Effect.Effect<unknown, SqlError>
  readonly depths: (app: string) => Effect.Effect<ReadonlyArray<ChannelDepth>, SqlError>
}

const postgres = (client: SqlClient.SqlClient): OutboxTable => {
  const sql = client.withoutTransforms()
  const statements = (texts: ReadonlyArray<string>) =>
    SqlClient.SqlClient.use((sql) => Effect.forEach(texts, (text) => sql.unsafe(text), { discard: true }))
  return {
    migrations: {
      "1_outbox": statements([
        `CREATE TABLE cohort_outbox (
          id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          position bigint,
          app text NOT NULL,
          kind text NOT NULL,
          channel text NOT NULL,
          message text NOT NULL,
          origin text NOT NULL,
          payload text NOT NULL,
          written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
          failures int NOT NULL DEFAULT 0,
          error text,
          failed_at timestamptz
        )`,
        `CREATE INDEX cohort_outbox_head ON cohort_outbox (app, kind, channel, position)`,
        `CREATE SEQUENCE cohort_outbox_positions`,
        `CREATE FUNCTION cohort_outbox_position() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
        BEGIN
          UPDATE cohort_outbox SET position = nextval('cohort_outbox_positions') WHERE id = NEW.id;
          RETURN NULL;
        END $$`,
        `CREATE CONSTRAINT TRIGGER cohort_outbox_position AFTER INSERT ON cohort_outbox
          DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION cohort_outbox_position()`
      ])
    },
    insert: ({ app, channel, kind, message, origin, payload }) =>
      sql`INSERT INTO cohort_outbox (app, kind, channel, message, origin, payload)
        VALUES (${app}, ${kind}, ${channel}, ${message}, ${origin}, ${payload})`,
    lock: ({ app, channel, kind }, idle) =>
      Effect.map(
        sql<{ locked: boolean }>`SELECT
          set_config('idle_in_transaction_session_timeout', ${String(idle)}, true),
          pg_try_advisory_xact_lock(hashtextextended(${JSON.stringify(["cohort_outbox", app, kind, channel])}, 0)) AS locked`,
        (rows) => rows[0]!.locked
      ),
    head: ({ app, channel, kind }, max, bytes) =>
      sql<Row>`SELECT id::text, message, origin, payload, failures,
          (extract(epoch FROM clock_timestamp() - written_at) * 1000)::float8 AS age
        FROM (
          SELECT *, sum(octet_length(payload)) OVER (ORDER BY position) - octet_length(payload) AS before
          FROM (
            SELECT * FROM cohort_outbox
            WHERE app = ${app} AND kind = ${kind} AND channel = ${channel} AND failed_at IS NULL
            ORDER BY position LIMIT ${max}
          ) AS first
        ) AS measured
        WHERE before < ${bytes}
        ORDER BY position`,
    remove: (ids) => sql`DELETE FROM cohort_outbox WHERE id = ANY (${ids}::bigint[])`,
    fail: (id, error, aside) =>
      sql`UPDATE cohort_outbox
        SET failures = failures + 1, error = ${error}, failed_at = CASE WHEN ${aside} THEN clock_timestamp() END
        WHERE id = ${id}::bigint`,
    depths: (app) =>
      sql<ChannelDepth>`SELECT kind, channel,
          (count(*) FILTER (WHERE failed_at IS NULL))::float8 AS depth,
          (count(*) FILTER (WHERE failed_at IS NOT NULL))::float8 AS failed,
          coalesce(extract(epoch FROM clock_timestamp() - min(written_at) FILTER (WHERE failed_at IS NULL)) * 1000, 0)::float8 AS age
        FROM cohort_outbox WHERE app = ${app} GROUP BY kind, channel`
  }
}

export const make = (sql: SqlClient.SqlClient): Effect.Effect<OutboxTable, InvalidInput> =>
  sql.onDialectOrElse({
    pg: () => Effect.succeed(postgres(sql)),
    orElse: () =>
      Effect.fail(new InvalidInput({ field: "SqlClient", detail: `the outbox is on PostgreSQL, not on ${sql.driver}` }))
  })
