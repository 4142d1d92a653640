/** The outbox, on every backend, beside a real PostgreSQL. What it shares with publishing after a commit is in after-commit.test.ts. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Schema from "effect/Schema"
import { SqlClient, Statement } from "effect/sql"
import * as Tracer from "effect/Tracer"
import { EventQueue, Job, Metrics, Reason, SyncMessage, SyncOutbox } from "../../src/index.ts"
import type { Backend, TestBackend, TestInstance } from "../../src/testing/contracts/Backend.ts"
import { describeOn, eventually, support } from "../../src/testing/contracts/support.ts"
import * as PostgresServer from "../servers/PostgresServer.ts"
import { backends, connect, outboxOn } from "./sql.ts"

const Sync = SyncMessage.make("sync", Schema.String, { debounce: 0 })
const Work = Job.make("work", Schema.String)

const publish = (text: string) =>
  Effect.all([SyncMessage.publish(Sync, text), EventQueue.publish(Work, text, { afterCommit: true })])

const receive = (instance: TestInstance) =>
  Effect.gen(function* () {
    const got = { sync: [] as Array<string>, work: [] as Array<string>, resyncs: 0 }
    yield* SyncMessage.subscribe(Sync, {
      handle: (text) => Effect.sync(() => got.sync.push(text)),
      resync: Effect.sync(() => got.resyncs++)
    })
    yield* EventQueue.subscribe(Work, { process: (text) => Effect.sync(() => got.work.push(text)) })
    return got
  }).pipe(instance.run)

/** A database, and what makes instances with an outbox on it, each with a client of its own. */
const onDatabase = (cluster: TestBackend) =>
  Effect.gen(function* () {
    const url = yield* PostgresServer.database
    const instance = Effect.gen(function* () {
      const sql = yield* connect(url)
      const outbox = yield* outboxOn(sql, { interval: "200 millis" })
      const instance = yield* Effect.provideService(cluster.instance(), SyncOutbox.SyncOutbox, outbox)
      const run = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
        instance.run(Effect.provideService(effect, SqlClient.SqlClient, sql))
      return { ...instance, sql, outbox, run }
    })
    const sql = yield* connect(url)
    const rows = Effect.map(
      sql<{ count: number }>`SELECT count(*)::int AS count FROM cohort_outbox`,
      ([row]) => row!.count
    )
    return { instance, sql, rows }
  })

const texts = (count: number) => Array.from({ length: count }, (_, i) => `${i}`)

const suite = (backend: Backend): void => {
  const { test, waitFor } = support(backend)

  const empty = (rows: Effect.Effect<number, unknown>) =>
    eventually(
      backend,
      Effect.map(rows, (count) => count === 0),
      "an empty outbox"
    )

  describeOn(backend, "SyncOutbox", () => {
    test("a row in the caller's transaction, by one statement; sent after the commit, once, and removed", (cluster) =>
      Effect.gen(function* () {
        const { instance, rows } = yield* onDatabase(cluster)
        const a = yield* instance
        const own = yield* receive(a)
        const got = yield* receive(yield* instance)
        const statements: Array<string> = []
        const tracer = Tracer.make({
          span: (options) => {
            if (options.kind === "client") statements.push(options.name)
            return new Tracer.NativeSpan(options)
          }
        })
        const inside = yield* a.run(
          a.sql.withTransaction(
            Effect.gen(function* () {
              for (const text of texts(10)) yield* Effect.withTracer(publish(text), tracer)
              const used = statements.length
              return { used, rows: (yield* a.sql`SELECT 1 FROM cohort_outbox`).length }
            })
          )
        )
        assert.deepStrictEqual(inside, { used: 20, rows: 20 })
        yield* waitFor(() => got.sync.length >= 10 && got.work.length + own.work.length >= 10, "what was published")
        yield* empty(rows)
        assert.deepStrictEqual(got.sync, texts(10))
        assert.deepStrictEqual(own.sync, [])
        assert.sameMembers([...got.work, ...own.work], texts(10))
      }))

    test("what is left over is relayed by any instance, to all but who published it", (cluster) =>
      Effect.gen(function* () {
        const { instance, rows } = yield* onDatabase(cluster)
        const b = yield* instance
        const c = yield* instance
        const got = [yield* receive(b), yield* receive(c)]
        const a = yield* instance
        // Cut off from the broker, it commits, and goes.
        yield* a.disconnect
        yield* a.run(a.sql.withTransaction(Effect.forEach(texts(10), publish)))
        yield* a.close
        yield* waitFor(() => got.every(({ sync }) => sync.length >= 10), "the messages")
        yield* waitFor(() => got.flatMap(({ work }) => work).length >= 10, "the jobs")
        yield* empty(rows)
        for (const { sync } of got) assert.deepStrictEqual(sync, texts(10))
        assert.sameMembers(
          got.flatMap(({ work }) => work),
          texts(10)
        )
      }))

    test("the broker is away: publishing succeeds, and everything comes, in order, when it is back", (cluster) =>
      Effect.gen(function* () {
        const { instance, rows } = yield* onDatabase(cluster)
        const a = yield* instance
        const got = yield* receive(yield* cluster.instance())
        yield* a.disconnect
        for (const text of texts(20)) yield* a.run(a.sql.withTransaction(publish(text)))
        yield* eventually(
          backend,
          Effect.map(a.outbox.status, (channels) =>
            channels.every(({ age, depth, failed }) => depth === 20 && age > 100 && failed === 0)
          ),
          "a depth and an age"
        )
        const kinds = (yield* a.outbox.status).map(({ channel, kind }) => `${kind} ${channel}`)
        assert.sameMembers(kinds, ["sync sync", "job work"])
        const gauges = () =>
          Effect.all([Metrics.outboxDepth, Metrics.outboxAge].map((metric) => valueOf(metric, "sync")))
        yield* eventually(
          backend,
          Effect.map(gauges(), ([depth, age]) => depth === 20 && age! > 0),
          "the gauges"
        )
        yield* a.reconnect
        yield* waitFor(() => got.sync.length >= 20 && got.work.length >= 20, "what was published")
        yield* empty(rows)
        assert.deepStrictEqual(got.sync, texts(20))
        assert.sameMembers(got.work, texts(20))
        yield* eventually(
          backend,
          Effect.map(gauges(), ([depth, age]) => depth === 0 && age === 0),
          "the gauges at rest"
        )
      }))

    test("in the order of commits, not of beginnings", (cluster) =>
      Effect.gen(function* () {
        const { instance } = yield* onDatabase(cluster)
        const a = yield* instance
        const b = yield* instance
        const got = yield* receive(yield* cluster.instance())
        for (const away of [false, true]) {
          got.sync.length = 0
          if (away) yield* Effect.all([a.disconnect, b.disconnect])
          const [published, over] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
          const early = yield* Effect.forkChild(
            a.run(
              a.sql.withTransaction(
                Effect.gen(function* () {
                  yield* publish("published first, committed last")
                  yield* Deferred.succeed(published, undefined)
                  yield* Deferred.await(over)
                })
              )
            )
          )
          yield* Deferred.await(published)
          yield* b.run(b.sql.withTransaction(publish("published last, committed first")))
          // Nothing waits for a transaction that is open.
          if (!away) yield* waitFor(() => got.sync.length > 0, "what is committed")
          yield* Deferred.succeed(over, undefined)
          yield* Fiber.join(early)
          if (away) yield* Effect.all([a.reconnect, b.reconnect])
          yield* waitFor(() => got.sync.length >= 2, "both")
          assert.deepStrictEqual(got.sync, ["published last, committed first", "published first, committed last"])
        }
      }))

    test("three instances commit on one channel at once: each message once, in the order of what they did", (cluster) =>
      Effect.gen(function* () {
        const { instance, rows, sql } = yield* onDatabase(cluster)
        const writers = yield* Effect.all([instance, instance, instance])
        const got = yield* receive(yield* cluster.instance())
        yield* sql`CREATE TABLE counter (n int)`
        yield* sql`INSERT INTO counter VALUES (0)`
        yield* sql`CREATE TABLE done (n int, message text)`
        const each = 60
        yield* Effect.forEach(
          writers,
          (writer, w) =>
            Effect.forEach(
              texts(each),
              (text, i) => {
                const message = `${w}-${text}`
                // The lock of the counter's row orders the transactions: before it, or after it, they publish.
                const count = writer.sql`WITH next AS (UPDATE counter SET n = n + 1 RETURNING n)
                  INSERT INTO done SELECT n, ${message} FROM next`
                const say = SyncMessage.publish(Sync, message)
                const body = i % 2 === 0 ? Effect.andThen(say, count) : Effect.andThen(count, say)
                return writer.run(writer.sql.withTransaction(body))
              },
              { concurrency: 3 }
            ),
          { concurrency: 3 }
        )
        const expected = yield* sql<{ message: string }>`SELECT message FROM done ORDER BY n`
        assert.strictEqual(expected.length, 3 * each)
        yield* waitFor(() => got.sync.length >= expected.length, "all messages")
        yield* empty(rows)
        assert.deepStrictEqual(
          got.sync,
          expected.map(({ message }) => message)
        )
      }))

    test("what is sent again, because its removal failed, is dropped where it came before", (cluster) =>
      Effect.gen(function* () {
        const { instance, rows, sql } = yield* onDatabase(cluster)
        const a = yield* instance
        const reader = yield* cluster.instance()
        const got = yield* receive(reader)
        yield* sql`CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN RAISE EXCEPTION 'not now'; END $$`
        yield* sql`CREATE TRIGGER keep BEFORE DELETE ON cohort_outbox FOR EACH ROW EXECUTE FUNCTION keep()`
        yield* a.run(a.sql.withTransaction(Effect.forEach(texts(5), publish)))
        yield* waitFor(() => got.sync.length >= 5 && got.work.length >= 5, "what was published")
        yield* a.run(a.sql.withTransaction(publish("5")))
        yield* waitFor(() => got.sync.length >= 6 && got.work.length >= 6, "what came after")
        yield* a.close
        assert.strictEqual(yield* rows, 12)
        // Another one knows nothing of what it sent.
        const b = yield* instance
        const before = (yield* reader.run(SyncMessage.status)).receivers[0]!.last[b.id]
        assert.isUndefined(before)
        yield* sql`DROP TRIGGER keep ON cohort_outbox`
        yield* empty(rows)
        yield* b.run(b.sql.withTransaction(publish("marker")))
        yield* waitFor(() => got.sync.includes("marker") && got.work.includes("marker"), "the marker")
        assert.deepStrictEqual(got.sync, [...texts(6), "marker"])
        assert.sameMembers(got.work, [...texts(6), "marker"])
      }))

    test("a row that cannot be sent is set aside: the rest goes on, and receivers resync", (cluster, logs) =>
      Effect.gen(function* () {
        const { instance, sql } = yield* onDatabase(cluster)
        const a = yield* instance
        const got = yield* receive(yield* cluster.instance())
        yield* a.run(a.sql.withTransaction(publish("first")))
        yield* waitFor(() => got.sync.length === 1 && got.work.length === 1, "the first")
        const resyncs = got.resyncs
        yield* a.run(
          a.sql.withTransaction(
            Effect.gen(function* () {
              yield* Effect.forEach(texts(3), publish)
              yield* a.sql`UPDATE cohort_outbox SET payload = 'garbage' WHERE payload LIKE '%"1"%'`
            })
          )
        )
        yield* waitFor(() => got.sync.length === 3 && got.work.length === 3, "the others")
        assert.deepStrictEqual(got.sync, ["first", "0", "2"])
        const aside = Effect.map(a.outbox.status, (channels) =>
          channels.map(({ depth, failed, kind }) => `${kind} ${depth} ${failed}`).sort()
        )
        yield* eventually(
          backend,
          Effect.map(aside, (found) => found.join() === "job 0 1,sync 0 1"),
          "the rows set aside"
        )
        const kept = yield* sql<{ error: string }>`SELECT error FROM cohort_outbox WHERE failed_at IS NOT NULL`
        for (const { error } of kept) assert.include(error, "payload: ")
        assert.strictEqual(logs.filter(({ level }) => level === "ERROR").length, 2)
        yield* a.run(a.sql.withTransaction(publish("next")))
        yield* waitFor(() => got.resyncs > resyncs, "the resync of the hole")
      }))

    test("a job's delay counts from its publishing", (cluster) =>
      Effect.gen(function* () {
        const { instance } = yield* onDatabase(cluster)
        const a = yield* instance
        yield* a.disconnect
        const late = { afterCommit: true, delay: "2 seconds" } as const
        yield* a.run(EventQueue.publish(Work, "late", { ...late, delay: "1 hour" }))
        yield* a.run(EventQueue.publish(Work, "soon", late))
        yield* eventually(
          backend,
          Effect.map(a.outbox.status, ([channel]) => channel!.age > 2_000),
          "the delay passing in the outbox"
        )
        yield* a.reconnect
        const depth = a.run(EventQueue.depth(Work))
        yield* eventually(
          backend,
          Effect.map(depth, ({ delayed, ready }) => delayed === 1 && ready === 1),
          "one ready, one delayed"
        )
      }))

    test("the database is away: publishing fails, typed, and goes on when it is back", (cluster) =>
      Effect.gen(function* () {
        const server = yield* PostgresServer.make()
        const sql = yield* connect(server.url)
        const outbox = yield* outboxOn(sql, { interval: "200 millis" })
        const a = yield* Effect.provideService(cluster.instance(), SyncOutbox.SyncOutbox, outbox)
        const got = yield* receive(yield* cluster.instance())
        yield* a.run(publish("before"))
        yield* waitFor(() => got.sync.length === 1, "a message")
        yield* server.kill
        const error = yield* Effect.flip(a.run(SyncMessage.publish(Sync, "lost")))
        assert.strictEqual(error.reason._tag, "Unavailable")
        assert.isTrue(Exit.isFailure(yield* Effect.exit(outbox.status)))
        yield* server.start
        const again = Effect.isSuccess(a.run(publish("after")))
        yield* eventually(backend, again, "a success")
        yield* waitFor(() => got.sync.includes("after") && got.work.includes("after"), "what was published")
        assert.notInclude(got.sync, "lost")
      }))
  })
}

const valueOf = (metric: typeof Metrics.outboxDepth, kind: string) =>
  Effect.map(Metric.value(Metric.withAttributes(metric, { kind })), ({ value }) => value)

describe("SyncOutbox", () => {
  for (const backend of backends) suite(backend)

  it.live(
    "a row that the broker refuses while it takes others is set aside after five failures, not one while it is away",
    () =>
      Effect.gen(function* () {
        const sql = yield* Effect.flatMap(PostgresServer.database, connect)
        const outbox = yield* outboxOn(sql, { interval: "200 millis" })
        const sent: Array<string> = []
        let tries = 0
        let away = true
        let aside = 0
        const refuse = new Reason.Unavailable({ backend: "test", detail: "too large" })
        const { write } = yield* outbox.open({
          app: "test",
          kind: "sync",
          instance: "a",
          send: (_, rows) =>
            Effect.sync(() => {
              const refused = away || rows.some(({ payload }) => payload === `"poison"`)
              if (refused) tries++
              else sent.push(...rows.map(({ payload }) => JSON.parse(payload)))
              return rows.map(() => (refused ? refuse : undefined))
            }),
          probe: () => Effect.sync(() => !away),
          onAside: () => Effect.sync(() => aside++)
        })
        const say = (text: string) => write({ channel: "c", message: text, payload: JSON.stringify(text) })
        yield* sql.withTransaction(Effect.forEach(["a", "b", "poison", "c", "d"], say))
        yield* Effect.promise(() =>
          PostgresServer.waitUntil(
            () => tries > 5,
            () => "never tried",
            30_000
          )
        )
        assert.strictEqual((yield* outbox.status)[0]!.depth, 5)
        assert.strictEqual(aside, 0)
        away = false
        yield* Effect.promise(() =>
          PostgresServer.waitUntil(
            () => sent.length === 4,
            () => "never sent",
            30_000
          )
        )
        assert.deepStrictEqual(sent, ["a", "b", "c", "d"])
        assert.strictEqual(aside, 1)
        const rows = yield* sql`SELECT message, failures, error FROM cohort_outbox`
        assert.deepStrictEqual(rows, [{ message: "poison", failures: 5, error: "test is unavailable: too large" }])
      }),
    60_000
  )

  it.live("large rows go in parts, without a pause", () =>
    Effect.gen(function* () {
      const sql = yield* Effect.flatMap(PostgresServer.database, connect)
      const outbox = yield* outboxOn(sql, { interval: "1 hour" })
      const parts: Array<number> = []
      const { write } = yield* outbox.open({
        app: "test",
        kind: "sync",
        instance: "a",
        send: (_, rows) =>
          Effect.sync(() => {
            parts.push(rows.length)
            return rows.map(() => undefined)
          }),
        probe: () => Effect.succeed(true),
        onAside: () => Effect.void
      })
      const large = JSON.stringify("x".repeat(300_000))
      const say = (message: string) => write({ channel: "c", message, payload: large })
      yield* sql.withTransaction(Effect.forEach(texts(5), say))
      const sent = () => parts.reduce((sum, part) => sum + part, 0)
      yield* Effect.promise(() =>
        PostgresServer.waitUntil(
          () => sent() === 5,
          () => `sent: ${parts}`
        )
      )
      assert.deepStrictEqual(parts, [2, 2, 1])
    })
  )

  it.live("is on PostgreSQL, and says so; a wrong interval is named", () =>
    Effect.gen(function* () {
      const sqlite = yield* SqlClient.make({
        acquirer: Effect.die("not used"),
        compiler: Statement.makeCompilerSqlite(),
        driver: "sqlite-node",
        spanAttributes: []
      }).pipe(Effect.provideServiceEffect(Reactivity.Reactivity, Reactivity.make))
      const error = yield* Effect.flip(Effect.provideService(SyncOutbox.make(), SqlClient.SqlClient, sqlite))
      assert.include(error.message, "SqlClient: the outbox is on PostgreSQL, not on sqlite-node")
      const wrong = yield* Effect.flip(
        Effect.provideService(SyncOutbox.make({ interval: 0 }), SqlClient.SqlClient, sqlite)
      )
      assert.include(wrong.message, "interval: must be positive")
    })
  )
})
