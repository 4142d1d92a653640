/**
 * PostgreSQL, for the host: the database that `DATABASE_URL` names, and the plugins' stores in it. What is wrong is
 * told with the name of the variable.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import { SqlError } from "effect/sql/SqlError"
import type * as Cohort from "../../layers/Cohort.ts"
import { TaskStoreSql } from "../../plugins/async-task-manager/index.ts"
import { AuthStoreSql } from "../../plugins/auth/index.ts"
import { CollectionStoreSql } from "../../plugins/data-source-main/index.ts"
import { encodeText } from "../../plugins/sql.ts"
import * as SyncOutbox from "../../services/SyncOutbox.ts"
import * as Transaction from "../../services/Transaction.ts"
import { describe, ofConfig, Refused } from "../Refused.ts"
import type * as Server from "../Server.ts"
import { config, settings } from "./settings.ts"

const variable = settings.url.name

const refused = (detail: string) => new Refused({ detail: `${variable}: ${detail}` })

const url: Effect.Effect<Redacted.Redacted, Refused> = Effect.flatMap(Effect.mapError(config, ofConfig), ({ url }) =>
  url === undefined ? Effect.fail(refused("is not set")) : Effect.succeed(url)
)

/** `DATABASE_URL: …` of what PostgreSQL, or the way there, answers. */
export const why = (error: unknown): Refused =>
  error instanceof Refused ? error : refused(describe(error instanceof SqlError ? error.reason.cause : error))

/** Connections to it. */
export const client = Layer.unwrap(
  Effect.map(url, (url) =>
    Transaction.layer.pipe(
      Layer.provide(PgClient.layer({ url, applicationName: "cohort", connectTimeout: "5 seconds" }))
    )
  )
)

const stores = Layer.mergeAll(AuthStoreSql.layer, TaskStoreSql.layer, CollectionStoreSql.layer)

/** The primitives with an outbox, and the plugins' stores: in the database, for all instances of the app. */
export const withStores = <E>(cohort: Layer.Layer<Cohort.Services, E>) =>
  stores.pipe(
    Layer.provideMerge(Layer.provideMerge(cohort, SyncOutbox.layer)),
    Layer.provide(client),
    Layer.catch((error) => Layer.effectContext(Effect.fail(why(error))))
  )

const tables = [
  "cohort_tasks",
  "cohort_collections",
  "cohort_auth_policies",
  "cohort_auth_revocations",
  "cohort_outbox"
]

export const server: Server.Kind = {
  variables: [variable],
  others: [],
  options: url,
  check: () => SqlClient.use((sql) => sql`SELECT 1`).pipe(Effect.provide(client), Effect.mapError(why)),
  binary: "postgres",
  start: Effect.fail(refused("is not set")),
  forget: (app) =>
    SqlClient.use((sql) =>
      Effect.forEach(tables, (table) => sql`DELETE FROM ${sql(table)} WHERE app IN ${sql.in([app, encodeText(app)])}`)
    ).pipe(Effect.provide(client), Effect.ignore)
}
