/** Bad input, what is listed, and a backend that is away. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { Lock, type LockStore } from "../../../index.ts"
import { eventually } from "../support.ts"
import { badTtls, cut, type Fixture, failsWith, hold, isFree, pass, refused, start } from "./fixture.ts"

export const tests = ({ backend, test, within, settle, two, three }: Fixture): void => {
  describe("bad input is refused before anything is asked", () => {
    const work = Effect.die("must not run")

    test('a key "" (or no text at all, or beyond all bounds)', (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        for (const key of ["", 7 as unknown as string, undefined as unknown as string, "x".repeat(100_000)]) {
          yield* refused(a.run(Lock.acquire(key)), "key")
          yield* refused(a.run(Lock.tryAcquire(key)), "key")
          yield* refused(a.run(Lock.runExclusive(key, work)), "key")
        }
      }))

    for (const [name, ttl] of badTtls) {
      test(`a ttl of ${name}`, (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          yield* refused(a.run(Lock.acquire("k", { ttl })), "ttl")
          yield* refused(a.run(Lock.tryAcquire("k", { ttl })), "ttl")
          yield* refused(a.run(Lock.tryAcquire("k", { ttl, timeout: "1 second" })), "ttl")
          yield* refused(a.run(Lock.runExclusive("k", work, { ttl })), "ttl")
          const { lease } = yield* hold(a, "k")
          yield* refused(lease.extend(ttl), "ttl")
          assert.isTrue(yield* lease.isHeld)
        }))
    }

    test("a timeout of -1, NaN or text", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        for (const timeout of [-1, Number.NaN, "soon" as "1 second"]) {
          yield* refused(a.run(Lock.tryAcquire("k", { timeout })), "timeout")
        }
        assert.isTrue(yield* isFree(a, "k"))
      }))
  })

  describe("list", () => {
    if (!backend.features.listsLocks) {
      test("fails typed", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          yield* hold(a, "k")
          yield* failsWith("Unavailable", a.run(Lock.list))
        }))
      return
    }

    test("has the locks of all instances, with fence, time left, holder and waiters, first come first", (cluster) =>
      Effect.gen(function* () {
        // Ids are for people to choose.
        const a = yield* cluster.instance({ id: `host.1 % {*} é🎉 ${Math.random()}` })
        const b = yield* cluster.instance()
        const other = yield* cluster.instance({ app: "another*" })
        assert.deepStrictEqual(yield* a.run(Lock.list), [])
        const odd = "{*}:q [\n] é🎉"
        const { lease: plain } = yield* hold(a, "plain", { ttl: "1 minute" })
        const { lease: long } = yield* hold(b, odd, { ttl: "1 hour" })
        yield* hold(other, "elsewhere")
        assert.isTrue(yield* isFree(a, "released"))

        let found: ReadonlyArray<LockStore.HeldLock> = []
        const lists = (what: string, condition: () => boolean) =>
          eventually(
            backend,
            Effect.map(a.run(Lock.list), (locks) => {
              found = locks
              return condition()
            }),
            what
          )
        const waiters = () => found.find(({ key }) => key === "plain")?.waiters ?? []
        const waiting: Array<Fiber.Fiber<number, Lock.LockError>> = []
        for (const instance of [b, a, b]) {
          waiting.push(yield* start(pass(instance, "plain")))
          yield* lists("it waits", () => waiters().length === waiting.length)
        }
        assert.deepStrictEqual(
          found.map(({ ttl: _, ...lock }) => lock),
          [
            { key: "plain", fence: plain.fence, holder: a.id, waiters: [b.id, a.id, b.id] },
            { key: odd, fence: long.fence, holder: b.id, waiters: [] }
          ]
        )
        // What is left is of a ttl and a little more.
        const left = found.map(({ ttl }) => ttl)
        assert.isTrue(left[0]! > 0 && left[0]! < 70_000, `${left[0]} ms`)
        assert.isTrue(left[1]! > 70_000 && left[1]! < 3_700_000, `${left[1]} ms`)

        // Who waits no more is not there, nor is what waited for nothing else.
        yield* Fiber.interrupt(waiting[0]!)
        yield* lists("it waits no more", () => waiters().length === 2)
        assert.deepStrictEqual(waiters(), [a.id, b.id])
      }))

    test("fails within the bound while the backend is away", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        yield* cut(a)
        yield* within(6, failsWith("Unavailable", a.run(Lock.list)))
      }))
  })

  describe("without its backend", () => {
    test("acquire, tryAcquire, runExclusive and extend fail typed within 5 seconds, and work again afterwards", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const { lease } = yield* hold(a, "held", { ttl: "1 minute" })
        yield* cut(a)
        let runs = 0
        const work = Effect.sync(() => runs++)
        const operations: ReadonlyArray<Effect.Effect<unknown, Lock.LockError, Scope.Scope>> = [
          a.run(Lock.acquire("k")),
          a.run(Lock.tryAcquire("k")),
          a.run(Lock.tryAcquire("k", { timeout: "1 minute" })),
          a.run(Lock.runExclusive("k", work)),
          lease.extend()
        ]
        const failing = Effect.forEach(operations, (operation) => failsWith("Unavailable", operation), {
          concurrency: "unbounded"
        })
        yield* within(6, failing)
        assert.strictEqual(runs, 0)
        assert.isTrue(yield* isFree(b, "k"))
        yield* a.reconnect
        yield* within(6, pass(a, "k"))
        assert.isTrue(yield* lease.isHeld)
      }))

    test("a grant that does not reach its waiter blocks the others no longer than its ttl", (cluster) =>
      Effect.gen(function* () {
        const [a, b, c] = yield* three(cluster)
        const holder = yield* hold(a, "k")
        const cutOff = yield* start(b.run(Lock.runExclusive("k", Effect.void, { ttl: "1 second" })))
        yield* settle
        const waiter = yield* start(pass(c, "k"))
        yield* settle
        yield* cut(b)
        yield* holder.release
        yield* within(3, Fiber.join(waiter))
        yield* within(12, Fiber.await(cutOff))
        yield* b.reconnect
        yield* within(6, pass(b, "k"))
        assert.isTrue(yield* isFree(a, "k"))
      }))

    test("a holder that comes back after its ttl has nothing, and takes nothing", (cluster) =>
      Effect.gen(function* () {
        const [a, b, c] = yield* three(cluster)
        const gone = yield* hold(a, "k", { ttl: "1 second" })
        yield* cut(a)
        yield* backend.advance("700 millis")
        const next = yield* start(hold(b, "k", { ttl: "1 second" }))
        yield* backend.advance("800 millis")
        const { lease } = yield* within(2, Fiber.join(next))
        yield* a.reconnect
        yield* backend.advance("500 millis")
        assert.isFalse(yield* gone.lease.isHeld)
        yield* failsWith("LockLost", gone.lease.extend())
        yield* gone.release
        yield* backend.advance("1 second")
        assert.isTrue(yield* lease.isHeld)
        assert.isFalse(yield* isFree(c, "k"))
        assert.isAbove(lease.fence, gone.lease.fence)
      }))
  })
}
