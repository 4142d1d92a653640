/** What the plugins' stores on SQL have in common. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import * as Migrator from "effect/sql/Migrator"
import { SqlClient } from "effect/sql/SqlClient"
import { SqlError } from "effect/sql/SqlError"
import { StoreError } from "./StoreError.ts"

/** After which a store that does not answer has failed. */
const timeout = Duration.seconds(5)

/**
 * Text for a column: PostgreSQL takes neither NUL nor half a surrogate pair, and a key must stay itself, so these are
 * escaped as JSON does it.
 */
export const Text = Schema.String.pipe(
  Schema.decodeTo(
    Schema.fromJsonString(Schema.String),
    SchemaTransformation.transform({ decode: (text) => `"${text}"`, encode: (json) => json.slice(1, -1) })
  )
)

export const encodeText = Schema.encodeSync(Text)

/** Fails with a {@link StoreError}, within a bound. */
export const failing =
  (store: string) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, StoreError, R> =>
    effect.pipe(
      Effect.timeout(timeout),
      Effect.mapError((cause) => new StoreError({ store, cause }))
    )

/** Runs changes in one transaction of the store, or in the caller's, and makes its client known to them. */
export const transaction =
  (sql: SqlClient, store: string) =>
  <A, E, R>(changes: Effect.Effect<A, E, R>): Effect.Effect<A, E | StoreError, R> =>
    sql.withTransaction(changes).pipe(
      Effect.provideService(SqlClient, sql),
      Effect.mapError((error) =>
        error instanceof SqlError ? new StoreError({ store, cause: error }) : (error as Exclude<E, SqlError>)
      )
    )

/**
 * Brings a plugin's tables up to date. Instances that start at the same time may all do it: they take turns at the
 * table of what has been done.
 */
export const migrate = (
  store: string,
  migrations: Record<`${number}_${string}`, Effect.Effect<unknown, SqlError, SqlClient>>
) =>
  Migrator.make({})({
    loader: Migrator.fromRecord(migrations as Record<string, Effect.Effect<void, unknown, SqlClient>>),
    table: `cohort_${store}_migrations`
  }).pipe(failing(store))
