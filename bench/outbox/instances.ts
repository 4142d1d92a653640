/** Two instances on PostgreSQL and Redis: one commits and publishes, the other one receives. */
import { PgClient } from "@effect/sql-pg"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql"
import { Cohort, EventQueue, Job, SyncMessage, SyncOutbox } from "../../src/index.ts"
import { timed } from "../bench.ts"
import { inFlight } from "../inFlight.ts"

const User = Schema.Struct({
  id: Schema.String,
  name: Schema.String,
  email: Schema.String,
  rows: Schema.Number,
  createdAt: Schema.String
})

/** About 150 bytes as JSON. */
const payload: typeof User.Type = {
  id: "5b1f0f5e-2f0c-4d52-9a0f-7f2d7d3d7c11",
  name: "Ada Lovelace",
  email: "ada@analytical.example",
  rows: 250,
  createdAt: "2026-01-01T00:00:00.000Z"
}

const Told = SyncMessage.make("told", User, { debounce: 0 })
const Work = Job.make("work", User)

const setUp = async (outbox: boolean) => {
  const app = `bench-${process.pid}`
  const database = PgClient.layer({ url: Redacted.make(process.env.DATABASE_URL!), maxConnections: 20 })
  const instance = Cohort.layerRedis({ app, url: process.env.REDIS_URL! })
  const scope = Effect.runSync(Scope.make())
  const build = <A, E>(layer: Layer.Layer<A, E>) =>
    Effect.runPromise(
      Layer.buildWithScope(Layer.fresh(Layer.provideMerge(layer, Logger.layer([]))), scope) as Effect.Effect<
        Context.Context<A>
      >
    )
  const sender = await build(
    (outbox ? Layer.provide(instance, SyncOutbox.layer) : instance).pipe(Layer.provideMerge(database))
  )
  const receiver = await build(instance)
  const sql = Context.get(sender, SqlClient.SqlClient)
  const run = <A, E>(effect: Effect.Effect<A, E, Cohort.Services | SqlClient.SqlClient>) =>
    Effect.runPromise(Effect.provideContext(effect, sender))
  const received = { told: 0, work: 0 }
  await Effect.runPromise(
    Effect.gen(function* () {
      const count = (what: "told" | "work") => Effect.sync(() => received[what]++)
      yield* SyncMessage.subscribe(Told, { handle: () => count("told"), resync: Effect.void })
      yield* EventQueue.subscribe(Work, { concurrency: 100, process: () => count("work") })
    }).pipe(Effect.provideContext(receiver), Scope.provide(scope))
  )
  await run(
    Effect.all([
      sql`CREATE TABLE IF NOT EXISTS done (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text)`,
      sql`CREATE TABLE IF NOT EXISTS plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload text)`
    ])
  )
  return { app, run, sql, received }
}

/** Transactions of one insert and what tells of it. */
export const committing = async (fibers: number, tells: "outbox" | "after commit" | "a plain row" | "nothing") => {
  const { run, sql } = await setUp(tells === "outbox")
  const tell =
    tells === "nothing"
      ? Effect.void
      : tells === "a plain row"
        ? sql`INSERT INTO plain (payload) VALUES (${JSON.stringify(payload)})`
        : SyncMessage.publish(Told, payload)
  const one = sql.withTransaction(
    Effect.andThen(
      sql`INSERT INTO done (name) VALUES ('field')`,
      Effect.asVoid(tell as Effect.Effect<unknown, unknown, SyncMessage.SyncMessage>)
    )
  )
  return (n: number) => timed(() => run(inFlight(n, fibers, () => one)))
}

/** From a commit of `n` rows until all have been received and none is left. */
export const relaying = async (kind: "sync" | "job") => {
  const { app, received, run, sql } = await setUp(true)
  const what = kind === "sync" ? "told" : "work"
  const publish =
    kind === "sync" ? SyncMessage.publish(Told, payload) : EventQueue.publish(Work, payload, { afterCommit: true })
  const left = Effect.map(
    sql<{ rows: number }>`SELECT count(*)::int AS rows FROM cohort_outbox WHERE app = ${app}`,
    ([row]) => row!.rows
  )
  return async (n: number) => {
    const before = received[what]
    let start = 0n
    await run(
      sql.withTransaction(
        Effect.gen(function* () {
          yield* sql.afterCommit(Effect.sync(() => (start = process.hrtime.bigint())))
          yield* publish
          // The others are that one again, with ids of their own.
          const id = "gen_random_uuid()::text"
          yield* sql.unsafe(`INSERT INTO cohort_outbox (app, kind, channel, message, origin, payload)
            SELECT app, kind, channel, ${id}, origin,
              CASE kind WHEN 'job' THEN regexp_replace(payload, '"id":"[^"]*"', '"id":"' || ${id} || '"') ELSE payload END
            FROM cohort_outbox, generate_series(2, ${n}) WHERE app = '${app}'`)
        })
      )
    )
    while (received[what] < before + n || (await run(left)) > 0) await new Promise((resolve) => setTimeout(resolve, 1))
    return Number(process.hrtime.bigint() - start)
  }
}
