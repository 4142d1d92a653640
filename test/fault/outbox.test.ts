/** Processes that commit and publish with an outbox die, or stop, at every step; others relay what they left. */
import { spawn } from "node:child_process"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql"
import { EventQueue, SyncMessage } from "../../src/index.ts"
import * as PostgresServer from "../servers/PostgresServer.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"
import { type Does, layer, Told, Work } from "./outbox-worker.ts"

let apps = 0

/** One server for the file: it notices soon that a client in the middle of a statement is dead. */
let shared: Promise<string> | undefined
const serverUrl = Effect.promise(() => {
  shared ??= Effect.runPromise(
    Effect.gen(function* () {
      const settings = { client_connection_check_interval: "100ms" }
      return (yield* Scope.provide(PostgresServer.make({ settings }), yield* Scope.make())).url
    })
  )
  return shared
})

const setUp = Effect.gen(function* () {
  const app = `outbox-${process.pid}-${apps++}`
  const databaseUrl = yield* PostgresServer.databaseOn(yield* serverUrl)
  const redis = new URL(yield* RedisServer.sharedUrl)
  const got = { told: [] as Array<string>, work: [] as Array<string> }
  const survivor = Effect.gen(function* () {
    const context = yield* Effect.orDie(Layer.build(layer(databaseUrl, redis.href, app)))
    const told: Array<string> = []
    yield* SyncMessage.subscribe(Told, {
      handle: (text) => Effect.sync(() => told.push(text)),
      resync: Effect.void
    }).pipe(Effect.provide(context))
    yield* EventQueue.subscribe(Work, {
      concurrency: 10,
      process: (text) => Effect.sync(() => got.work.push(text))
    }).pipe(Effect.provide(context))
    return { told, sql: Context.get(context, SqlClient.SqlClient) }
  })
  const survivors = [yield* survivor, yield* survivor]
  const { sql } = survivors[0]!
  yield* sql`CREATE TABLE done (message text)`

  const start = (does: Does, redisUrl = redis.href) =>
    Effect.gen(function* () {
      const worker = yield* Effect.acquireRelease(
        Effect.sync(() =>
          spawn(process.execPath, [script, databaseUrl, redisUrl, app, does], { stdio: ["ignore", "pipe", "inherit"] })
        ),
        (worker) => Effect.sync(() => worker.kill("SIGKILL"))
      )
      const gone = new Promise<void>((resolve) => worker.once("exit", () => resolve()))
      yield* Effect.promise(() => Promise.race([new Promise((ready) => worker.stdout.once("data", ready)), gone]))
      return {
        gone: Effect.promise(() => gone),
        signal: (signal: NodeJS.Signals) => Effect.sync(() => void worker.kill(signal))
      }
    })

  const until = (what: string, condition: Effect.Effect<boolean, unknown>) =>
    Effect.promise(() =>
      RedisServer.waitUntil(
        () => Effect.runPromise(Effect.orDie(condition)),
        () => `never: ${what}`,
        50_000
      )
    )

  const rows = sql<{ count: number }>`SELECT count(*)::int AS count FROM cohort_outbox`
  const committed = Effect.map(sql<{ message: string }>`SELECT message FROM done`, (rows) =>
    rows.map(({ message }) => message)
  )

  /** Every survivor was told of what was committed, and of nothing else, once; each job ran once; nothing is left. */
  const settled = Effect.gen(function* () {
    yield* until(
      "an empty outbox",
      Effect.map(rows, ([row]) => row!.count === 0)
    )
    const expected = (yield* committed).sort()
    yield* until(
      "everything that was committed",
      Effect.sync(() =>
        [got.work, ...survivors.map(({ told }) => told)].every((texts) => texts.length >= expected.length)
      )
    )
    for (const { told } of survivors) assert.deepStrictEqual([...told].sort(), expected)
    assert.deepStrictEqual([...got.work].sort(), expected)
    return expected
  })

  return { start, until, settled, survivors, sql, redis, committed }
})

const script = new URL("./outbox-worker.ts", import.meta.url).pathname

describe.concurrent("an outbox whose process", () => {
  const test = (name: string, body: Effect.Effect<void, unknown, Scope.Scope>) => it.live(name, () => body, 120_000)

  test(
    "dies between the insert and the commit: nothing has happened",
    Effect.gen(function* () {
      const { committed, settled, start, until } = yield* setUp
      yield* (yield* start("die before the commit")).gone
      // One that lives on, so that there is something to wait for.
      yield* start("commit once")
      yield* until(
        "its commit",
        Effect.map(committed, (messages) => messages.length > 0)
      )
      assert.deepStrictEqual(yield* settled, ["message"])
    })
  )

  test(
    "dies between the commit and the publish: others publish it, once",
    Effect.gen(function* () {
      const { settled, start } = yield* setUp
      yield* (yield* start("die after the commit")).gone
      assert.deepStrictEqual(yield* settled, ["message"])
    })
  )

  for (const [step, trigger] of [
    ["between publishing and removing", "TRIGGER slow BEFORE DELETE ON cohort_outbox FOR EACH ROW"],
    [
      "between removing and that commit",
      "CONSTRAINT TRIGGER slow AFTER DELETE ON cohort_outbox DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
    ]
  ] as const) {
    test(
      `dies ${step}: others publish it again, and nobody handles it twice`,
      Effect.gen(function* () {
        const { settled, sql, start, survivors, until } = yield* setUp
        yield* sql`CREATE TABLE slow ()`
        yield* sql`INSERT INTO slow DEFAULT VALUES`
        // Whoever relays waits here, a survivor too if it came first, and goes on once the table is empty.
        yield* sql`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN WHILE EXISTS (SELECT FROM slow) LOOP PERFORM pg_sleep(0.1); END LOOP; RETURN OLD; END $$`
        yield* sql.unsafe(`CREATE ${trigger} EXECUTE FUNCTION slow()`)
        const worker = yield* start("commit once")
        yield* until(
          "the message",
          Effect.sync(() => survivors.every(({ told }) => told.length > 0))
        )
        yield* worker.signal("SIGKILL")
        yield* worker.gone
        yield* sql`DELETE FROM slow`
        assert.deepStrictEqual(yield* settled, ["message"])
      })
    )
  }

  test(
    "is frozen while it publishes: others take over, and it does no harm when it goes on",
    Effect.gen(function* () {
      const { committed, redis, settled, sql, start, until } = yield* setUp
      const proxy = yield* TcpProxy.make({ host: redis.hostname, port: Number(redis.port || 6379) })
      const own = new URL(redis)
      own.port = String(proxy.port)
      own.hostname = "127.0.0.1"
      const worker = yield* start("commit on and on", own.href)
      yield* until(
        "a commit",
        Effect.map(committed, (messages) => messages.length > 0)
      )
      // It holds a channel, and has had no answer.
      yield* proxy.blackhole
      const holding = sql`SELECT 1 FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'idle in transaction' AND query LIKE '%FROM cohort_outbox%'`
      yield* until(
        "a relay that waits",
        Effect.map(holding, (rows) => rows.length > 0)
      )
      yield* worker.signal("SIGSTOP")
      yield* settled
      yield* proxy.heal
      yield* worker.signal("SIGCONT")
      const before = (yield* committed).length
      yield* until(
        "more commits",
        Effect.map(committed, (messages) => messages.length > before + 5)
      )
      yield* worker.signal("SIGKILL")
      yield* worker.gone
      yield* settled
    })
  )

  test(
    "is killed at any moment, ten times over: everything that was committed arrives, once",
    Effect.gen(function* () {
      const { committed, settled, sql, start, until } = yield* setUp
      for (let i = 0; i < 10; i++) {
        const before = (yield* committed).length
        const workers = [yield* start("commit on and on"), yield* start("commit on and on")]
        const enough = before + 20 + Math.floor(Math.random() * 100)
        yield* until(
          "some commits",
          Effect.map(committed, (messages) => messages.length > enough)
        )
        for (const worker of workers) yield* worker.signal("SIGKILL")
        for (const worker of workers) yield* worker.gone
      }
      // A COMMIT may have been on its way.
      const busy = sql`SELECT 1 FROM pg_stat_activity
        WHERE datname = current_database() AND state IN ('active', 'idle in transaction') AND pid <> pg_backend_pid()`
      yield* until(
        "the end of their sessions",
        Effect.map(busy, (rows) => rows.length === 0)
      )
      assert.isAbove((yield* settled).length, 200)
    })
  )
})
