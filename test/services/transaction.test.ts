/** Locks that last as long as a transaction, beside a real PostgreSQL. */
import { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import { Cohort, Lock, Transaction } from "../../src/index.ts"
import { MemoryHub } from "../../src/layers/memory/index.ts"
import * as PostgresServer from "../servers/PostgresServer.ts"

/** Waits for a fiber that waits for the database and for virtual time. */
const passing = <A, E>(fiber: Fiber.Fiber<A, E>): Effect.Effect<A, E> =>
  Effect.gen(function* () {
    while (fiber.pollUnsafe() === undefined) {
      yield* TestClock.adjust("1 second")
      yield* TestClock.withLive(Effect.sleep("5 millis"))
    }
    return yield* Fiber.join(fiber)
  })

/** Two instances, and a database that both use. */
const setUp = Effect.gen(function* () {
  const url = Redacted.make(yield* PostgresServer.database)
  const hub = yield* MemoryHub.make
  const raw = PgClient.layer({ url, maxConnections: 5 })
  const instance = (id: string) =>
    Layer.build(
      Layer.fresh(Layer.merge(Cohort.layerMemory({ app: "test", id, hub }), Layer.provide(Transaction.layer, raw)))
    )
  const [a, b] = [yield* instance("a"), yield* instance("b")]
  const sql = Context.get(a, SqlClient.SqlClient)
  yield* sql`CREATE TABLE rows (id INTEGER PRIMARY KEY, other INTEGER REFERENCES rows (id) DEFERRABLE INITIALLY DEFERRED)`
  const isFree = (key: string) => Effect.scoped(Lock.tryAcquire(key)).pipe(Effect.map(Option.isSome), Effect.provide(b))
  const count = Effect.map(sql<{ n: number }>`SELECT COUNT(*)::INTEGER AS n FROM rows`, ([row]) => row!.n)
  /** Writes a row under the lock. */
  const locked = (key: string, id: number) => Transaction.runExclusive(key, sql`INSERT INTO rows (id) VALUES (${id})`)
  return { a, b, hub, raw, sql, isFree, count, locked, run: Effect.provide(a) }
})

/** Real time for what waits for the database; virtual time for leases. */
describe("a lock taken in a transaction", () => {
  it.effect("is held until that has committed, not merely until its work has ended", () =>
    Effect.gen(function* () {
      const { count, isFree, locked, run, sql } = yield* setUp
      const free: Array<boolean> = []
      const look = Effect.map(Effect.orDie(isFree("k")), (isFree) => void free.push(isFree))
      yield* sql
        .withTransaction(
          Effect.gen(function* () {
            yield* locked("k", 1)
            yield* look
            yield* sql.afterCommit(look)
          })
        )
        .pipe(run)
      assert.deepStrictEqual(free, [false, false])
      assert.isTrue(yield* isFree("k"))
      assert.strictEqual(yield* count, 1)
    })
  )

  it.effect("is that of the client in context, also inside one of another database", () =>
    Effect.gen(function* () {
      const { isFree, locked, run, sql } = yield* setUp
      const url = Redacted.make(yield* PostgresServer.database)
      const other = Context.get(
        yield* Layer.build(Layer.provide(Transaction.layer, PgClient.layer({ url, maxConnections: 2 }))),
        SqlClient.SqlClient
      )
      const free: Array<boolean> = []
      const look = Effect.map(Effect.orDie(isFree("k")), (isFree) => void free.push(isFree))
      const ends: Array<string> = []
      yield* sql
        .withTransaction(
          Effect.gen(function* () {
            const work = Effect.andThen(locked("k", 1), Transaction.onEnd(Effect.sync(() => void ends.push("outer"))))
            yield* other.withTransaction(work)
            assert.deepStrictEqual(ends, [])
            yield* look
            return yield* Effect.fail("rolled back")
          })
        )
        .pipe(Effect.flip, run)
      assert.deepStrictEqual(free, [false])
      assert.deepStrictEqual(ends, ["outer"])
      assert.isTrue(yield* isFree("k"))
    })
  )

  it.effect("is released when that is rolled back: failed, interrupted, died, or refused at its COMMIT", () =>
    Effect.gen(function* () {
      const { count, isFree, locked, run, sql } = yield* setUp
      const ends: ReadonlyArray<Effect.Effect<unknown, unknown>> = [
        Effect.fail("refused"),
        Effect.interrupt,
        Effect.die("broken"),
        sql`INSERT INTO rows (id, other) VALUES (2, 3)`
      ]
      for (const end of ends) {
        const exit = yield* Effect.exit(
          run(
            sql.withTransaction(
              Effect.gen(function* () {
                yield* locked("k", 1)
                assert.isFalse(yield* isFree("k"))
                return yield* end
              })
            )
          )
        )
        assert.isTrue(Exit.isFailure(exit))
        assert.isTrue(yield* isFree("k"))
        assert.strictEqual(yield* count, 0)
      }
    })
  )

  it.effect("is held until the outermost ends, also when its savepoint commits or is rolled back", () =>
    Effect.gen(function* () {
      const { isFree, locked, run, sql } = yield* setUp
      yield* sql
        .withTransaction(
          Effect.gen(function* () {
            yield* sql.withTransaction(locked("committed", 1))
            yield* Effect.flip(sql.withTransaction(Effect.andThen(locked("rolled back", 2), Effect.fail("refused"))))
            assert.isFalse(yield* isFree("committed"))
            assert.isFalse(yield* isFree("rolled back"))
          })
        )
        .pipe(run)
      assert.isTrue(yield* isFree("committed"))
      assert.isTrue(yield* isFree("rolled back"))
    })
  )

  it.effect("may be taken again by that transaction, by one fiber at a time", () =>
    Effect.gen(function* () {
      const { isFree, run, sql } = yield* setUp
      let inside = 0
      const work = Effect.acquireUseRelease(
        Effect.sync(() => ++inside),
        (now) =>
          Effect.andThen(
            Effect.yieldNow,
            Effect.sync(() => assert.strictEqual(now, 1))
          ),
        () => Effect.sync(() => --inside)
      )
      yield* sql
        .withTransaction(
          Effect.forEach([1, 2, 3], () => Transaction.runExclusive("k", work), { concurrency: "unbounded" })
        )
        .pipe(run)
      assert.isTrue(yield* isFree("k"))
    })
  )

  it.effect("keeps that from committing when it was lost", () =>
    Effect.gen(function* () {
      const { count, hub, isFree, locked, run, sql } = yield* setUp
      const error = yield* sql
        .withTransaction(
          Effect.gen(function* () {
            yield* locked("k", 1)
            yield* hub.disconnect("a")
            yield* TestClock.adjust("1 minute")
            assert.isTrue(yield* isFree("k"))
            yield* hub.reconnect("a")
          })
        )
        .pipe(run, Effect.flip)
      assert.strictEqual(error._tag, "SqlError")
      assert.match(String(error._tag === "SqlError" && error.reason.message), /the lease of "k" .* was lost/)
      assert.strictEqual(yield* count, 0)
    })
  )

  it.effect("interrupts its work when it is lost", () =>
    Effect.gen(function* () {
      const { hub, run, sql } = yield* setUp
      const begun = yield* Deferred.make<void>()
      const fiber = yield* Transaction.runExclusive(
        "k",
        Effect.andThen(Deferred.succeed(begun, undefined), Effect.never)
      ).pipe(sql.withTransaction, run, Effect.flip, Effect.forkChild)
      yield* Deferred.await(begun)
      yield* hub.disconnect("a")
      const error = yield* passing(fiber)
      assert.strictEqual(error._tag === "LockError" && error.reason._tag, "LockLost")
    })
  )

  it.effect("is waited for by a transaction for 15 seconds, as two may wait for each other", () =>
    Effect.gen(function* () {
      const { a, b, count, locked, sql } = yield* setUp
      const both = yield* Deferred.make<void>()
      let begun = 0
      const inOrder = (first: string, second: string, id: number) =>
        Effect.gen(function* () {
          yield* locked(first, id)
          if (++begun === 2) yield* Deferred.succeed(both, undefined)
          yield* Deferred.await(both)
          yield* locked(second, id + 1)
        }).pipe(sql.withTransaction)
      const one = yield* Effect.forkChild(Effect.exit(Effect.provide(inOrder("x", "y", 1), a)))
      const other = yield* Effect.forkChild(Effect.exit(Effect.provide(inOrder("y", "x", 11), b)))
      yield* Deferred.await(both)
      const failures = [yield* passing(one), yield* passing(other)].filter(Exit.isFailure)
      assert.isAtLeast(failures.length, 1)
      for (const { cause } of failures) {
        const error = Cause.squash(cause)
        assert.isTrue(error instanceof Lock.LockError && error.reason._tag === "Unavailable", String(error))
      }
      assert.strictEqual(yield* count, 2 * (2 - failures.length))
    })
  )

  it.effect("is refused where nothing would tell its end", () =>
    Effect.gen(function* () {
      const { isFree, raw, run, sql } = yield* setUp
      const other = Context.get(yield* Layer.build(raw), SqlClient.SqlClient)
      const foreign = yield* Transaction.runExclusive("k", Effect.void).pipe(other.withTransaction, run, Effect.flip)
      assert.match(foreign.message, /^transaction: its client does not tell when it ends/)
      const late = yield* Effect.contextWith((context: Context.Context<Lock.Lock>) =>
        Effect.succeed(Effect.provideContext(Transaction.runExclusive("k", Effect.void), context))
      ).pipe(sql.withTransaction, run)
      assert.strictEqual((yield* Effect.flip(late)).message, "transaction: has ended")
      assert.isTrue(yield* isFree("k"))
    })
  )

  it.effect("is an ordinary one without a transaction", () =>
    Effect.gen(function* () {
      const { isFree, run } = yield* setUp
      const answer = yield* run(Transaction.runExclusive("k", isFree("k")))
      assert.isFalse(answer)
      assert.isTrue(yield* isFree("k"))
    })
  )
})

describe("onEnd", () => {
  it.effect("runs when the outermost transaction has ended, either way, the last one first; at once without one", () =>
    Effect.gen(function* () {
      const { count, raw, run, sql } = yield* setUp
      const said: Array<string> = []
      /** Sees what others see. */
      const say = (text: string) =>
        Effect.flatMap(Effect.orDie(count), (rows) => Effect.sync(() => void said.push(`${text}, ${rows} rows`)))
      yield* Transaction.onEnd(say("at once"))
      const two = (id: number) =>
        Effect.gen(function* () {
          yield* Transaction.onEnd(say("first"))
          yield* sql.withTransaction(Transaction.onEnd(say("second")))
          yield* sql`INSERT INTO rows (id) VALUES (${id})`
          said.push("committing")
        })
      yield* run(sql.withTransaction(two(1)))
      yield* Effect.flip(run(sql.withTransaction(Effect.andThen(two(2), Effect.fail("refused")))))
      const expected = ["committing", "second, 1 rows", "first, 1 rows"]
      assert.deepStrictEqual(said.splice(0), ["at once, 0 rows", ...expected, ...expected])

      // Of a client that does not tell when it rolls back.
      const other = Context.get(yield* Layer.build(raw), SqlClient.SqlClient)
      yield* other.withTransaction(Transaction.onEnd(say("committed")))
      yield* Effect.flip(other.withTransaction(Effect.andThen(Transaction.onEnd(say("no")), Effect.fail("refused"))))
      assert.deepStrictEqual(said, ["committed, 1 rows"])
    })
  )
})
