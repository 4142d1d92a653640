/** What is published inside a transaction leaves after its commit, on every backend, beside a real PostgreSQL. */
import { assert, describe } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql"
import { EventQueue, Job, Metrics, PubSub, SyncMessage, SyncOutbox, Topic } from "../../src/index.ts"
import type { Backend, TestBackend, TestInstance } from "../../src/testing/contracts/Backend.ts"
import { counting, describeOn, support } from "../../src/testing/contracts/support.ts"
import { backends, freshDatabase, outboxOn } from "./sql.ts"

const Sync = SyncMessage.make("sync", Schema.String, { debounce: 0 })
const Told = Topic.make("told", Schema.String)
const Work = Job.make("work", Schema.String)

const afterCommit = { afterCommit: true }

/** In all three ways. */
const publish = (text: string) =>
  Effect.all([
    SyncMessage.publish(Sync, text),
    PubSub.publish(Told, text, afterCommit),
    EventQueue.publish(Work, text, afterCommit)
  ])

/** What one instance gets; `resyncs` counts apart. */
const receive = (instance: TestInstance) =>
  Effect.gen(function* () {
    const got = { sync: [] as Array<string>, told: [] as Array<string>, work: [] as Array<string>, resyncs: 0 }
    const note = (to: Array<string>) => (text: string) => Effect.sync(() => to.push(text))
    yield* SyncMessage.subscribe(Sync, { handle: note(got.sync), resync: Effect.sync(() => got.resyncs++) })
    yield* PubSub.subscribe(Told, note(got.told))
    yield* EventQueue.subscribe(Work, { process: note(got.work) })
    return got
  }).pipe(instance.run)

/** `outbox`: whether sync messages and jobs go through one, which keeps the same promises. */
const suite = (backend: Backend, outbox: boolean): void => {
  const { test, waitFor, within } = support(backend)

  const setUp = (cluster: TestBackend) =>
    Effect.gen(function* () {
      const sql = yield* freshDatabase
      const sender = yield* outbox
        ? Effect.provideService(cluster.instance(), SyncOutbox.SyncOutbox, yield* outboxOn(sql))
        : cluster.instance()
      const got = yield* receive(yield* cluster.instance())
      const run = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
        sender.run(Effect.provideService(effect, SqlClient.SqlClient, sql))

      /** What came, once something published later has: in the order it came, jobs in any. */
      const settled = Effect.gen(function* () {
        yield* run(publish("marker"))
        const ways = [got.sync, got.told, got.work]
        yield* waitFor(() => ways.every((texts) => texts.includes("marker")), "the marker")
        yield* waitFor(() => got.resyncs > 0, "the resync of a new sender")
        const empty = Effect.map(EventQueue.depth(Work), ({ inFlight, ready }) => inFlight + ready === 0)
        while (!(yield* run(empty))) yield* backend.advance("10 millis")
        const others = (texts: Array<string>) => texts.filter((text) => text !== "marker" && text !== "other")
        assert.sameMembers(others(got.work), others(got.sync))
        assert.deepStrictEqual(others(got.told), others(got.sync))
        return others(got.sync)
      })
      return { sender, got, sql, run, settled }
    })

  describeOn(backend, outbox ? "with an outbox" : "without an outbox", () => {
    test("leaves after the commit, in order, and not before", (cluster) =>
      Effect.gen(function* () {
        const { got, run, settled, sql } = yield* setUp(cluster)
        const texts = Array.from({ length: 200 }, (_, i) => `${i}`)
        const before = yield* run(
          sql.withTransaction(
            Effect.gen(function* () {
              yield* Effect.forEach(texts, publish)
              // A message of another goes through meanwhile.
              yield* Effect.provide(PubSub.publish(Told, "other"), (yield* cluster.instance()).context)
              yield* waitFor(() => got.told.length > 0, "a message from elsewhere")
              return { sync: [...got.sync], told: [...got.told], work: [...got.work] }
            })
          )
        )
        assert.deepStrictEqual(before, { sync: [], told: ["other"], work: [] })
        assert.deepStrictEqual(yield* settled, texts)
      }))

    test("never leaves when the transaction fails, dies or is interrupted", (cluster) =>
      Effect.gen(function* () {
        const { run, settled, sql } = yield* setUp(cluster)
        for (const end of [Effect.fail("refused"), Effect.die("defect"), Effect.interrupt]) {
          const exit = yield* Effect.exit(run(sql.withTransaction(Effect.andThen(publish("lost"), end))))
          assert.isTrue(Exit.isFailure(exit))
        }
        const published = yield* Deferred.make<void>()
        const waiting = Effect.andThen(
          publish("lost"),
          Effect.andThen(Deferred.succeed(published, undefined), Effect.never)
        )
        const fiber = yield* Effect.forkChild(run(sql.withTransaction(waiting)))
        yield* Deferred.await(published)
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual(yield* settled, [])
      }))

    test("never leaves when the COMMIT fails", (cluster) =>
      Effect.gen(function* () {
        const { run, settled, sql } = yield* setUp(cluster)
        yield* sql`CREATE TABLE parent (id int PRIMARY KEY)`
        yield* sql`CREATE TABLE child (parent int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)`
        const orphan = Effect.andThen(publish("lost"), sql`INSERT INTO child VALUES (1)`)
        const deferred = yield* Effect.exit(run(sql.withTransaction(orphan)))
        assert.isTrue(Exit.isFailure(deferred))
        // A transaction that a statement has broken commits nothing, though nobody says so.
        const broken = Effect.andThen(publish("lost"), Effect.exit(sql`SELECT 1 / 0`))
        const aborted = yield* Effect.exit(run(sql.withTransaction(broken)))
        assert.isTrue(Exit.isFailure(aborted))
        assert.deepStrictEqual(yield* settled, [])
      }))

    test("nested: after the outermost commit, in order; not what a savepoint rolled back", (cluster) =>
      Effect.gen(function* () {
        const { run, settled, sql } = yield* setUp(cluster)
        const rolledBack = sql.withTransaction(Effect.andThen(publish("lost"), Effect.fail("refused")))
        const inner = Effect.gen(function* () {
          yield* publish("2")
          yield* Effect.ignore(rolledBack)
          yield* sql.withTransaction(publish("3"))
          yield* publish("4")
        })
        yield* run(
          sql.withTransaction(
            Effect.gen(function* () {
              yield* publish("1")
              yield* Effect.ignore(rolledBack)
              yield* sql.withTransaction(inner)
              yield* publish("5")
            })
          )
        )
        const whole = Effect.andThen(sql.withTransaction(publish("lost")), Effect.fail("refused"))
        yield* Effect.ignore(run(sql.withTransaction(whole)))
        assert.deepStrictEqual(yield* settled, ["1", "2", "3", "4", "5"])
      }))

    test("of a client that only its service has, not the context", (cluster) =>
      Effect.gen(function* () {
        const { sender, settled, sql } = yield* setUp(cluster)
        const { run } = sender
        yield* Effect.ignore(run(sql.withTransaction(Effect.andThen(publish("lost"), Effect.fail("refused")))))
        yield* run(sql.withTransaction(publish("kept")))
        assert.deepStrictEqual(yield* settled, ["kept"])
      }))

    test("of another client than the one in context, when only that has a transaction open", (cluster) =>
      Effect.gen(function* () {
        const { run, settled } = yield* setUp(cluster)
        const other = yield* freshDatabase
        yield* Effect.ignore(run(other.withTransaction(Effect.andThen(publish("lost"), Effect.fail("refused")))))
        yield* run(other.withTransaction(publish("kept")))
        assert.deepStrictEqual(yield* settled, ["kept"])
      }))

    test("at once without a transaction; broadcasts and jobs at once unless they ask", (cluster) =>
      Effect.gen(function* () {
        const { got, run, sender, settled, sql } = yield* setUp(cluster)
        yield* sender.run(publish("no client"))
        yield* run(publish("no transaction"))
        assert.deepStrictEqual(yield* settled, ["no client", "no transaction"])
        const asked = Effect.all([PubSub.publish(Told, "now"), EventQueue.publish(Work, "now")])
        yield* Effect.ignore(run(sql.withTransaction(Effect.andThen(asked, Effect.fail("refused")))))
        yield* waitFor(() => got.told.includes("now") && got.work.includes("now"), "what does not wait")
        assert.notInclude(got.sync, "now")
      }))

    test("a fiber that outlives its transaction cannot publish in it: a typed error, and nothing is sent", (cluster) =>
      Effect.gen(function* () {
        const { run, settled, sql } = yield* setUp(cluster)
        for (const end of [Effect.void, Effect.fail("refused")]) {
          const over = yield* Deferred.make<void>()
          const publishing = Effect.all([
            Effect.flip(SyncMessage.publish(Sync, "late")),
            Effect.flip(PubSub.publish(Told, "late", afterCommit)),
            Effect.flip(EventQueue.publish(Work, "late", afterCommit))
          ])
          const fork = Effect.forkDetach(Effect.andThen(Deferred.await(over), publishing))
          let fiber: Effect.Success<typeof fork> | undefined
          const body = Effect.tap(fork, (forked) => Effect.sync(() => (fiber = forked)))
          yield* Effect.ignore(run(sql.withTransaction(Effect.andThen(body, end))))
          yield* Deferred.succeed(over, undefined)
          for (const error of yield* Fiber.join(fiber!)) {
            assert.strictEqual(error.reason._tag, "InvalidInput")
            assert.strictEqual(error.reason._tag === "InvalidInput" && error.reason.field, "transaction")
          }
        }
        assert.deepStrictEqual(yield* settled, [])
      }))

    test("bad input fails inside the transaction, and nothing is sent", (cluster) =>
      Effect.gen(function* () {
        const { run, settled, sql } = yield* setUp(cluster)
        const refused = Effect.flip(SyncMessage.publish(Sync, 1 as never))
        const error = yield* run(sql.withTransaction(refused))
        assert.strictEqual(error.reason._tag, "InvalidInput")
        assert.deepStrictEqual(yield* settled, [])
      }))

    if (!outbox)
      test("a broker that is away then does not hold up the transaction; it is logged, counted, and resynced", (cluster, logs) =>
        Effect.gen(function* () {
          const { got, run, sender, settled, sql } = yield* setUp(cluster)
          yield* settled
          const failures = yield* counting(Metrics.afterCommitFailures)
          const before = got.resyncs
          yield* sender.disconnect
          yield* run(sql.withTransaction(Effect.forEach(["a", "b", "c"], publish)))
          yield* within(
            8,
            Effect.gen(function* () {
              while ((yield* failures) < 9) yield* backend.advance("50 millis")
            })
          )
          const warnings = logs.filter(({ message }) => String(message).includes("Committed"))
          assert.sameMembers(
            [...new Set(warnings.map(({ annotations }) => annotations.channel))],
            ["sync", "told", "work"]
          )
          yield* sender.reconnect
          yield* waitFor(() => got.resyncs > before, "the resync that follows the hole")
        }))
  })
}

describe("after commit", () => {
  for (const backend of backends) for (const outbox of [false, true]) suite(backend, outbox)
})
