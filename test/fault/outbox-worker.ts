/**
 * One process of a fault test: commits, and publishes with an outbox.
 * `node outbox-worker.ts <database url> <redis url> <app> <does>`
 */
import { PgClient } from "@effect/sql-pg"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql"
import { Cohort, EventQueue, Job, SyncMessage, SyncOutbox } from "../../src/index.ts"

export const Told = SyncMessage.make("told", Schema.String, { debounce: 0 })
export const Work = Job.make("work", Schema.String)

export const layer = (databaseUrl: string, redisUrl: string, app: string) =>
  Cohort.layerRedis({ app, url: redisUrl, timeout: "5 seconds" }).pipe(
    Layer.provide(SyncOutbox.layerWith({ interval: "200 millis" })),
    Layer.provideMerge(
      PgClient.layer({ url: Redacted.make(databaseUrl), maxConnections: 6, connectTimeout: "30 seconds" })
    ),
    Layer.provideMerge(Logger.layer([]))
  )

/** Where it kills itself, or what it does until it is killed. */
export type Does = "die before the commit" | "die after the commit" | "commit once" | "commit on and on"

/** What is done, and what tells of it, in one transaction. */
const commit = (
  message: string,
  around: { readonly first?: Effect.Effect<void>; readonly last?: Effect.Effect<void> }
) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* sql.withTransaction(
      Effect.gen(function* () {
        yield* around.first ?? Effect.void
        yield* sql`INSERT INTO done VALUES (${message})`
        yield* SyncMessage.publish(Told, message)
        yield* EventQueue.publish(Work, message, { afterCommit: true })
        yield* around.last ?? Effect.void
      })
    )
  })

const die = Effect.sync(() => void process.kill(process.pid, "SIGKILL"))

if (import.meta.main) {
  const [databaseUrl, redisUrl, app, does] = process.argv.slice(2) as [string, string, string, Does]
  const program = Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    console.log("ready")
    if (does === "die before the commit") return yield* commit("message", { last: die })
    // The first thing after the commit.
    if (does === "die after the commit") return yield* commit("message", { first: sql.afterCommit(die) })
    if (does === "commit once") {
      yield* commit("message", {})
      return yield* Effect.never
    }
    // A connection that was being made while it was frozen has timed out when it goes on.
    const one = Effect.retry(
      Effect.suspend(() => commit(globalThis.crypto.randomUUID(), {})),
      Schedule.spaced("100 millis")
    )
    yield* Effect.forEach([1, 2, 3], () => Effect.forever(one), { concurrency: 3 })
  })
  await Effect.runPromise(Effect.provide(program, layer(databaseUrl, redisUrl, app)))
}
