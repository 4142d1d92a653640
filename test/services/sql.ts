/** Backends beside a PostgreSQL: on real time, as the database is. */
import { PgClient } from "@effect/sql-pg"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql"
import { SyncOutbox } from "../../src/index.ts"
import type { Backend } from "../../src/testing/contracts/Backend.ts"
import { memory } from "../layers/memory.ts"
import { redis } from "../layers/redis.ts"
import * as PostgresServer from "../servers/PostgresServer.ts"

const { advance, layer, virtual } = redis
export const backends: ReadonlyArray<Backend> = [{ ...memory, advance, layer, virtual }, redis]

/** A client of a database, that lives as long as the scope. */
export const connect = (url: string) =>
  Effect.map(
    Layer.build(PgClient.layer({ url: Redacted.make(url), maxConnections: 5 })),
    Context.get(SqlClient.SqlClient)
  )

/** An outbox of the client's database, for instances that are made with it. */
export const outboxOn = (sql: SqlClient.SqlClient, options: SyncOutbox.Options = {}) =>
  Effect.map(
    Effect.provideService(Layer.build(SyncOutbox.layerWith(options)), SqlClient.SqlClient, sql),
    Context.get(SyncOutbox.SyncOutbox)
  )

/** A client of a database that nobody else has. */
export const freshDatabase = Effect.flatMap(PostgresServer.database, connect)
