/** The contract of `Lock` (design §4.5), for every backend. */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { Lock, type LockStore } from "../../index.ts"
import type { Backend, TestBackend, TestInstance } from "./Backend.ts"
import { describeOn, eventually, support } from "./support.ts"

/** A lease in a scope of its own. */
interface Holding {
  readonly lease: Lock.Lease
  readonly release: Effect.Effect<void>
}

const ownScope = Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))

/** Takes a lock, until `release` or the end of the test. */
const hold = (
  instance: TestInstance,
  key: string,
  options?: Lock.LeaseOptions
): Effect.Effect<Holding, Lock.LockError, Scope.Scope> =>
  Effect.gen(function* () {
    const scope = yield* ownScope
    const lease = yield* Scope.provide(instance.run(Lock.acquire(key, options)), scope)
    return { lease, release: Scope.close(scope, Exit.void) }
  })

/** Tries to take a lock and gives it back at once. */
const isFree = (instance: TestInstance, key: string) =>
  Effect.map(Effect.scoped(instance.run(Lock.tryAcquire(key))), Option.isSome)

/** Takes a lock as soon as it is free, and gives it back; the fence it got. */
const pass = (instance: TestInstance, key: string) =>
  instance.run(Lock.runExclusive(key, ({ fence }) => Effect.succeed(fence)))

/** Starts a fiber, and gives it the turn. */
const start = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

const hasEnded = (fiber: Fiber.Fiber<unknown, unknown>) => fiber.pollUnsafe() !== undefined

/** Cuts an instance off until it is reconnected, or the test ends. */
const cut = (instance: TestInstance) =>
  Effect.andThen(
    Effect.addFinalizer(() => instance.reconnect),
    instance.disconnect
  )

const failsWith = <A, E, R>(tag: Lock.LockError["reason"]["_tag"], operation: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(operation), (error) => {
    assert.instanceOf(error, Lock.LockError)
    assert.strictEqual(error.reason._tag, tag)
    assert.strictEqual(error.message, error.reason.message)
    return error.reason
  })

/** Asserts that an operation fails with `InvalidInput` for the field. */
const refused = <A, E, R>(operation: Effect.Effect<A, E, R>, field: string) =>
  Effect.map(failsWith("InvalidInput", operation), (reason) => {
    assert.strictEqual(reason._tag === "InvalidInput" && reason.field, field)
    assert.include(reason.message, field)
  })

/** Work that says when it runs and when it was stopped, and goes on until the test ends it. */
const gated = <A = void>() =>
  Effect.gen(function* () {
    const gate = yield* Deferred.make<A>()
    const started = yield* Deferred.make<void>()
    const work = {
      running: 0,
      stopped: 0,
      started: Deferred.await(started),
      end: (value: A) => Deferred.succeed(gate, value),
      effect: Effect.suspend(() => {
        work.running++
        return Effect.andThen(Deferred.succeed(started, undefined), Deferred.await(gate))
      }).pipe(
        Effect.onExit((exit) =>
          Effect.sync(() => {
            work.running--
            if (Exit.isFailure(exit)) work.stopped++
          })
        )
      )
    }
    return work
  })

const oddKeys = [
  "*",
  ":",
  "a:b",
  "a%3Ab",
  "[",
  "[a-z]",
  "{tag}",
  "\\",
  " ",
  "\n",
  "é🎉",
  "__proto__",
  "x".repeat(10_240)
]

const badTtls: ReadonlyArray<readonly [string, Duration.Input]> = [
  ["0", 0],
  ["-1", -1],
  ["NaN", Number.NaN],
  ["Infinity", Number.POSITIVE_INFINITY],
  ["text", "soon" as "1 second"]
]

export const suite = (backend: Backend, options: { readonly propertyRuns?: number | undefined } = {}): void => {
  const { scenario, test, waitFor, within } = support(backend)
  const { settle } = backend

  const two = (cluster: TestBackend) => Effect.all([cluster.instance(), cluster.instance()])
  const three = (cluster: TestBackend) => Effect.all([cluster.instance(), cluster.instance(), cluster.instance()])

  describeOn(backend, "Lock", () => {
    describe("exclusion", () => {
      test("never two holders, on one instance or on many", (cluster) =>
        Effect.gen(function* () {
          const instances = yield* three(cluster)
          let holders = 0
          let runs = 0
          const work = Effect.gen(function* () {
            assert.strictEqual(++holders, 1)
            for (let i = 0; i < 5; i++) yield* Effect.yieldNow
            assert.strictEqual(holders--, 1)
            runs++
          })
          const exclusively = (i: number) => instances[i % 3]!.run(Lock.runExclusive("k", work))
          yield* Effect.forEach(Array.from({ length: 60 }).keys(), exclusively, { concurrency: "unbounded" })
          assert.strictEqual(runs, 60)
        }))

      test("a lock held by acquire keeps tryAcquire, acquire and runExclusive out", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const holder = yield* hold(a, "k")
          for (const instance of [a, b]) {
            assert.isFalse(yield* isFree(instance, "k"))
            const waiting: ReadonlyArray<Fiber.Fiber<unknown, unknown>> = [
              yield* start(hold(instance, "k")),
              yield* start(pass(instance, "k"))
            ]
            yield* backend.advance("300 millis")
            assert.deepStrictEqual(waiting.map(hasEnded), [false, false])
            yield* Fiber.interruptAll(waiting)
          }
          yield* holder.release
          assert.isTrue(yield* isFree(b, "k"))
        }))

      test("keys do not wait for each other, whatever they hold", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const holders = yield* Effect.forEach(oddKeys, (key) => hold(a, key))
          assert.deepStrictEqual(
            holders.map(({ lease }) => lease.key),
            oddKeys
          )
          assert.isTrue(yield* isFree(b, "another"))
          for (const [i, key] of oddKeys.entries()) {
            assert.isFalse(yield* isFree(b, key), key.slice(0, 20))
            yield* holders[i]!.release
            assert.isTrue(yield* isFree(b, key), key.slice(0, 20))
          }
        }))

      test("two apps on one backend do not see each other, whatever their names", (cluster) =>
        Effect.gen(function* () {
          for (const [app, key] of [
            ["shop", "k"],
            ["blog", "k"],
            ["shop:lock", "k"],
            ["shop", "lock:k"],
            ["shop%3Alock", "k"],
            ["*", "k"],
            ["shop", "*"]
          ] as const) {
            const instance = yield* cluster.instance({ app })
            assert.isTrue(yield* isFree(instance, key), `${app} | ${key}`)
            yield* hold(instance, key)
          }
        }))

      test("runExclusive gives what the work gives, which may be a function of the lease", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          assert.strictEqual(yield* a.run(Lock.runExclusive("k", Effect.succeed(1))), 1)
          const work = (lease: Lock.Lease) =>
            Effect.gen(function* () {
              assert.strictEqual(lease.key, "k")
              assert.isTrue(yield* lease.isHeld)
              assert.isFalse(yield* isFree(b, "k"))
              return lease
            })
          const lease = yield* a.run(Lock.runExclusive("k", work))
          assert.isFalse(yield* lease.isHeld)
          assert.isTrue(yield* isFree(b, "k"))
        }))
    })

    describe("order", () => {
      test("first come, first served across instances, however they ask", (cluster) =>
        Effect.gen(function* () {
          const instances = yield* three(cluster)
          const holder = yield* hold(instances[0], "k")
          const served: Array<number> = []
          const serve = (i: number) => Effect.sync(() => served.push(i))
          const ways: ReadonlyArray<(i: number) => Effect.Effect<unknown, Lock.LockError, Lock.Lock>> = [
            (i) => Lock.runExclusive("k", serve(i)),
            (i) => Effect.scoped(Effect.andThen(Lock.acquire("k"), serve(i))),
            (i) => Effect.scoped(Effect.andThen(Lock.tryAcquire("k", { timeout: "1 minute" }), serve(i)))
          ]
          const waiters: Array<Fiber.Fiber<unknown, unknown>> = []
          for (let i = 0; i < 12; i++) {
            waiters.push(yield* start(instances[(i * 2) % 3]!.run(ways[(i >> 1) % 3]!(i))))
            yield* settle
          }
          yield* holder.release
          yield* Effect.forEach(waiters, Fiber.join)
          assert.deepStrictEqual(served, [...Array(12).keys()])
        }))

      test("nobody overtakes those who wait", (cluster) =>
        Effect.gen(function* () {
          const [a, b, c] = yield* three(cluster)
          const holder = yield* hold(a, "k")
          const work = yield* gated()
          const waiter = yield* start(b.run(Lock.runExclusive("k", work.effect)))
          yield* settle
          yield* holder.release
          const late = yield* start(pass(c, "k"))
          assert.isFalse(yield* isFree(a, "k"))
          yield* work.started
          assert.isFalse(hasEnded(late))
          yield* work.end()
          yield* Fiber.join(waiter)
          yield* Fiber.join(late)
        }))

      test("waiters are woken: no time passes between a release and the next grant", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const holder = yield* hold(a, "k")
          const waiters = [yield* start(pass(b, "k")), yield* start(pass(a, "k")), yield* start(pass(b, "k"))]
          yield* settle
          const released = performance.now()
          yield* holder.release
          yield* Effect.forEach(waiters, Fiber.join)
          assert.isBelow(performance.now() - released, 500)
        }))
    })

    describe("leases", () => {
      test("a lease is renewed while its holder's scope is open", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const holder = yield* hold(a, "acquired", { ttl: "1500 millis" })
          const work = yield* gated<number>()
          const worker = yield* start(a.run(Lock.runExclusive("run", work.effect, { ttl: "1500 millis" })))
          yield* work.started
          const waiter = yield* start(pass(b, "run"))
          for (let i = 0; i < 8; i++) {
            yield* backend.advance("350 millis")
            assert.isTrue(yield* holder.lease.isHeld)
            assert.isFalse(yield* isFree(b, "acquired"))
            assert.isFalse(hasEnded(waiter))
          }
          yield* work.end(1)
          assert.strictEqual(yield* Fiber.join(worker), 1)
          yield* Fiber.join(waiter)
          yield* holder.release
          assert.isTrue(yield* isFree(b, "acquired"))
        }))

      test("renew: false lets a lease end with its ttl, not earlier", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const { lease } = yield* hold(a, "k", { ttl: "1 second", renew: false })
          const lost = yield* start(lease.lost)
          const waiter = yield* start(hold(b, "k"))
          yield* backend.advance("400 millis")
          assert.isFalse(hasEnded(waiter))
          assert.isTrue(yield* lease.isHeld)
          yield* backend.advance("800 millis")
          yield* waitFor(() => hasEnded(waiter) && hasEnded(lost), "the end of the lease")
          const reason = yield* Fiber.join(lost)
          assert.deepStrictEqual([reason._tag, reason.key, reason.fence], ["LockLost", "k", lease.fence])
          assert.isFalse(yield* lease.isHeld)
          assert.isFalse(yield* isFree(a, "k"))
        }))

      test("an expired lease that nobody waits for is free for the taking", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          yield* hold(a, "k", { ttl: "300 millis", renew: false })
          yield* backend.advance("600 millis")
          assert.isTrue(yield* isFree(b, "k"))
          yield* hold(b, "k")
          assert.isFalse(yield* isFree(a, "k"))
        }))

      test("ttl bounds how long a dead holder blocks the others, and its work is interrupted with LockLost", (cluster) =>
        Effect.gen(function* () {
          const [a, b, c] = yield* three(cluster)
          const work = yield* gated()
          const worker = yield* start(a.run(Lock.runExclusive("k", work.effect, { ttl: "900 millis" })))
          yield* work.started
          let stillRunning = -1
          const next = Effect.sync(() => {
            stillRunning = work.running
          })
          const waiter = yield* start(b.run(Lock.runExclusive("k", next)))
          const second = yield* start(pass(c, "k"))
          yield* settle
          yield* cut(a)
          yield* backend.advance("500 millis")
          assert.isFalse(hasEnded(waiter))
          assert.strictEqual(work.running, 1)
          yield* backend.advance("800 millis")
          yield* within(2, Effect.andThen(Fiber.join(waiter), Fiber.join(second)))
          assert.strictEqual(stillRunning, 0, "the next holder came before the work was stopped")
          assert.strictEqual(work.stopped, 1)
          // The work has stopped; saying so to the caller may wait for the backend's answer to the release.
          const lost = yield* failsWith("LockLost", within(6, Fiber.join(worker)))
          assert.strictEqual(lost._tag === "LockLost" && lost.key, "k")
        }))

      test("lease.lost is the signal for what acquire protects", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const { lease } = yield* hold(a, "k", { ttl: "900 millis" })
          const first = yield* start(lease.lost)
          yield* cut(a)
          yield* backend.advance("500 millis")
          assert.isFalse(hasEnded(first))
          assert.isTrue(yield* lease.isHeld)
          yield* backend.advance("700 millis")
          yield* waitFor(() => hasEnded(first), "the loss")
          assert.strictEqual((yield* Fiber.join(first)).fence, lease.fence)
          assert.strictEqual((yield* lease.lost).key, "k")
          assert.isFalse(yield* lease.isHeld)
        }))

      test("lease.lost never completes for a lease that is released in time", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const holder = yield* hold(a, "k", { ttl: "300 millis" })
          const lost = yield* start(holder.lease.lost)
          yield* holder.release
          yield* backend.advance("800 millis")
          assert.isFalse(hasEnded(lost))
          assert.isFalse(yield* holder.lease.isHeld)
        }))

      test("a short loss of the connection costs no lease", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const work = yield* gated<number>()
          const worker = yield* start(a.run(Lock.runExclusive("k", work.effect, { ttl: "3 seconds" })))
          yield* work.started
          yield* cut(a)
          yield* backend.advance("1500 millis")
          yield* a.reconnect
          yield* backend.advance("3500 millis")
          assert.isFalse(yield* isFree(b, "k"))
          yield* work.end(1)
          assert.strictEqual(yield* Fiber.join(worker), 1)
        }))

      test("extend starts the ttl again, with another length if it says so", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const { lease } = yield* hold(a, "k", { ttl: "800 millis", renew: false })
          yield* backend.advance("500 millis")
          yield* lease.extend()
          yield* backend.advance("500 millis")
          assert.isTrue(yield* lease.isHeld)
          assert.isFalse(yield* isFree(b, "k"))
          yield* lease.extend("2 seconds")
          yield* backend.advance("1500 millis")
          assert.isTrue(yield* lease.isHeld)
          assert.isFalse(yield* isFree(b, "k"))
          yield* backend.advance("800 millis")
          assert.isFalse(yield* lease.isHeld)
          assert.isTrue(yield* isFree(b, "k"))
        }))

      test("extend can shorten a lease, also for those who wait already", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const { lease } = yield* hold(a, "k", { ttl: "1 minute", renew: false })
          const waiter = yield* start(pass(b, "k"))
          yield* settle
          yield* lease.extend("500 millis")
          yield* backend.advance("800 millis")
          yield* within(1, Fiber.join(waiter))
          assert.isFalse(yield* lease.isHeld)
        }))

      test("a late extend fails with LockLost, and takes nothing from the new holder", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const { lease } = yield* hold(a, "k", { ttl: "300 millis", renew: false })
          yield* backend.advance("600 millis")
          yield* failsWith("LockLost", lease.extend())
          const next = yield* hold(b, "k")
          const lost = yield* failsWith("LockLost", lease.extend("1 minute"))
          assert.strictEqual(lost._tag === "LockLost" && lost.fence, lease.fence)
          assert.isTrue(yield* next.lease.isHeld)
          assert.isFalse(yield* isFree(a, "k"))
        }))

      test("extending a lease that was released fails with LockLost, and takes nothing back", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const holder = yield* hold(a, "k")
          yield* holder.release
          yield* failsWith("LockLost", holder.lease.extend())
          assert.isTrue(yield* isFree(a, "k"))
        }))

      test("releasing a lease that has expired neither fails nor touches the new holder", (cluster) =>
        Effect.gen(function* () {
          const [a, b, c] = yield* three(cluster)
          const expired = yield* hold(a, "k", { ttl: "300 millis", renew: false })
          yield* backend.advance("600 millis")
          const next = yield* hold(b, "k")
          yield* expired.release
          assert.isFalse(yield* isFree(a, "k"))
          assert.isFalse(yield* isFree(c, "k"))
          assert.isTrue(yield* next.lease.isHeld)
          yield* next.release
          assert.isTrue(yield* isFree(c, "k"))
        }))
    })

    describe("fences", () => {
      test("strictly increase per key over every grant, whoever gets it and however", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const fences: Array<number> = []
          for (let round = 0; round < 3; round++) {
            fences.push(yield* pass(a, "k"))
            const holder = yield* hold(b, "k")
            fences.push(holder.lease.fence)
            const waiters = [yield* start(pass(a, "k")), yield* start(pass(b, "k"))]
            yield* settle
            yield* holder.release
            yield* Effect.forEach(waiters, Fiber.join)
            const tried = yield* Effect.scoped(a.run(Lock.tryAcquire("k")))
            fences.push(Option.getOrThrow(tried).fence)
            // A holder that lets it expire, and one that is restarted.
            fences.push((yield* hold(b, "k", { ttl: "100 millis", renew: false })).lease.fence)
            yield* backend.advance("300 millis")
            const restarted = yield* cluster.instance()
            fences.push(yield* pass(restarted, "k"))
            yield* restarted.close
          }
          assert.deepStrictEqual(
            fences,
            [...new Set(fences)].sort((x, y) => x - y)
          )
          for (const fence of fences) assert.isTrue(Number.isSafeInteger(fence) && fence > 0)
        }))
    })

    describe("tryAcquire", () => {
      test("with timeout 0, which is the default, never waits", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const scope = yield* ownScope
          const taken = yield* Scope.provide(a.run(Lock.tryAcquire("k")), scope)
          assert.isTrue(yield* Option.getOrThrow(taken).isHeld)
          for (const instance of [a, b]) {
            for (const options of [undefined, {}, { timeout: 0 }]) {
              assert.isTrue(Option.isNone(yield* Effect.scoped(instance.run(Lock.tryAcquire("k", options)))))
            }
          }
          yield* Scope.close(scope, Exit.void)
          assert.isTrue(yield* isFree(b, "k"))
        }))

      test("gives None when the time is up, not earlier, and leaves no trace", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const holder = yield* hold(a, "k")
          const trying = yield* start(Effect.scoped(b.run(Lock.tryAcquire("k", { timeout: "600 millis" }))))
          yield* backend.advance("400 millis")
          assert.isFalse(hasEnded(trying))
          yield* backend.advance("400 millis")
          yield* waitFor(() => hasEnded(trying), "None")
          assert.isTrue(Option.isNone(yield* Fiber.join(trying)))
          yield* holder.release
          assert.isTrue(yield* isFree(a, "k"))
        }))

      test("gives the lock that becomes free while it waits", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          for (const timeout of ["1 minute", Number.POSITIVE_INFINITY] as const) {
            const holder = yield* hold(a, "k")
            const scope = yield* ownScope
            const trying = yield* start(Scope.provide(b.run(Lock.tryAcquire("k", { timeout })), scope))
            yield* backend.advance("300 millis")
            yield* holder.release
            const lease = Option.getOrThrow(yield* Fiber.join(trying))
            assert.isTrue(yield* lease.isHeld)
            assert.isFalse(yield* isFree(a, "k"))
            yield* Scope.close(scope, Exit.void)
          }
          assert.isTrue(yield* isFree(a, "k"))
        }))

      test("takes a free lock at once, whatever its timeout, and renews it", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const taken = yield* a.run(Lock.tryAcquire("k", { timeout: "10 seconds", ttl: "500 millis" }))
          yield* backend.advance("1200 millis")
          assert.isTrue(yield* Option.getOrThrow(taken).isHeld)
          assert.isFalse(yield* isFree(b, "k"))
        }))
    })

    describe("interruption", () => {
      const ways: ReadonlyArray<readonly [string, (key: string) => Effect.Effect<unknown, Lock.LockError, Lock.Lock>]> =
        [
          ["acquire", (key) => Effect.scoped(Lock.acquire(key))],
          ["tryAcquire", (key) => Effect.scoped(Lock.tryAcquire(key, { timeout: "1 minute" }))],
          ["runExclusive", (key) => Lock.runExclusive(key, Effect.void)]
        ]

      for (const [name, way] of ways) {
        test(`interrupting a waiter of ${name} leaves no trace`, (cluster) =>
          Effect.gen(function* () {
            const [a, b, c] = yield* three(cluster)
            const holder = yield* hold(a, "k")
            const doomed = yield* start(b.run(way("k")))
            yield* settle
            const waiter = yield* start(pass(c, "k"))
            const doomed2 = yield* start(b.run(way("k")))
            yield* settle
            yield* within(1, Fiber.interrupt(doomed))
            yield* within(1, Fiber.interrupt(doomed2))
            assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(doomed)))
            yield* holder.release
            yield* Fiber.join(waiter)
            assert.isTrue(yield* isFree(a, "k"))
          }))

        test(`interrupting a waiter of ${name} leaves no trace when it races the grant`, (cluster) =>
          Effect.gen(function* () {
            const [a, b, c] = yield* three(cluster)
            for (let round = 0; round < 24; round++) {
              const holder = yield* hold(a, "k")
              const doomed = yield* start(b.run(way("k")))
              yield* settle
              const yields = (n: number) => Effect.forEach(Array(n), () => Effect.yieldNow, { discard: true })
              const release = Effect.andThen(yields(round % 4), holder.release)
              const interrupt = Effect.andThen(yields((round >> 2) % 3), Fiber.interrupt(doomed))
              const both = round % 2 === 0 ? [release, interrupt] : [interrupt, release]
              yield* Effect.all(both, { concurrency: "unbounded" })
              yield* Fiber.await(doomed)
              yield* within(1, pass(c, "k"))
            }
          }))
      }

      test("interrupting a waiter in the turn that grants it the lock leaves no trace", (cluster) =>
        Effect.gen(function* () {
          const [a, b, c] = yield* three(cluster)
          for (const [, way] of ways) {
            const first = yield* hold(a, "first")
            const second = yield* hold(a, "second")
            const doomed = yield* start(b.run(way("second")))
            yield* settle
            const work = Effect.andThen(
              second.release,
              Effect.sync(() => doomed.interruptUnsafe())
            )
            const racing = yield* start(c.run(Lock.runExclusive("first", work)))
            yield* settle
            yield* first.release
            yield* Fiber.join(racing)
            yield* Fiber.await(doomed)
            yield* within(1, pass(c, "second"))
          }
        }))

      test("interrupting who comes just as the lock is free leaves no trace", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          for (const [, way] of ways) {
            for (let round = 0; round < 6; round++) {
              const doomed = yield* Effect.forkChild(a.run(way("k")))
              for (let i = 0; i < round; i++) yield* Effect.yieldNow
              yield* Fiber.interrupt(doomed)
              yield* within(1, pass(b, "k"))
            }
          }
        }))

      test("a timeout that races the grant leaves either a lease or nothing", (cluster) =>
        Effect.gen(function* () {
          const [a, b, c] = yield* three(cluster)
          for (const late of [-20, 0, 0, 20]) {
            const holder = yield* hold(a, "k")
            const trying = yield* start(Effect.scoped(b.run(Lock.tryAcquire("k", { timeout: "100 millis" }))))
            const releasing = yield* start(Effect.delay(holder.release, 100 + late))
            yield* backend.advance("300 millis")
            yield* waitFor(() => hasEnded(trying) && hasEnded(releasing), "an answer")
            yield* within(1, pass(c, "k"))
          }
        }))

      test("a waiter whose scope closes is as good as interrupted", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const holder = yield* hold(a, "k")
          const scope = yield* Scope.make()
          yield* Effect.forkIn(b.run(Lock.runExclusive("k", Effect.never)), scope, { startImmediately: true })
          yield* settle
          yield* Scope.close(scope, Exit.void)
          yield* holder.release
          assert.isTrue(yield* isFree(a, "k"))
        }))
    })

    describe("work", () => {
      test("that fails, dies, throws or interrupts itself releases, and its exit comes through", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const thrown = new Error("thrown")
          const fail: Effect.Effect<void, string> = Effect.fail("no")
          const works: ReadonlyArray<readonly [string, () => Effect.Effect<void, string>, Exit.Exit<void, string>]> = [
            ["fails", () => fail, Exit.fail("no")],
            ["dies", () => Effect.die(thrown), Exit.die(thrown)],
            [
              "throws",
              () => {
                throw thrown
              },
              Exit.die(thrown)
            ],
            ["fails later", () => Effect.andThen(Effect.yieldNow, fail), Exit.fail("no")],
            ["dies later", () => Effect.andThen(Effect.yieldNow, Effect.die(thrown)), Exit.die(thrown)]
          ]
          for (const [how, work, expected] of works) {
            assert.deepStrictEqual(yield* Effect.exit(a.run(Lock.runExclusive("k", work))), expected, how)
            assert.isTrue(yield* isFree(b, "k"), how)
            const scoped = Effect.scoped(Effect.andThen(Lock.acquire("k"), Effect.suspend(work)))
            assert.deepStrictEqual(yield* Effect.exit(a.run(scoped)), expected, how)
            assert.isTrue(yield* isFree(b, "k"), how)
          }
          for (const work of [Effect.interrupt, Effect.andThen(Effect.yieldNow, Effect.interrupt)]) {
            const exit = yield* Fiber.await(yield* start(a.run(Lock.runExclusive("k", work))))
            assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
            assert.isTrue(yield* isFree(b, "k"))
          }
        }))

      test("that is interrupted has stopped before the next holder comes", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const work = yield* gated()
          let cleaned = false
          const cleaning = Effect.onInterrupt(work.effect, () =>
            Effect.andThen(
              Effect.yieldNow,
              Effect.sync(() => {
                cleaned = true
              })
            )
          )
          const worker = yield* start(a.run(Lock.runExclusive("k", cleaning)))
          yield* work.started
          const waiter = yield* start(
            b.run(
              Lock.runExclusive(
                "k",
                Effect.sync(() => cleaned)
              )
            )
          )
          yield* settle
          const exit = yield* Effect.andThen(Fiber.interrupt(worker), Fiber.await(worker))
          assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
          assert.isTrue(yield* Fiber.join(waiter))
        }))

      test("that never returns ends when its caller is interrupted", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const worker = yield* start(a.run(Lock.runExclusive("k", Effect.never)))
          yield* settle
          yield* within(1, Fiber.interrupt(worker))
          assert.isTrue(yield* isFree(b, "k"))
        }))

      test("in an uninterruptible caller is not interrupted, and nor is its waiting", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const work = yield* gated<number>()
          const holder = yield* hold(b, "k")
          const worker = yield* start(Effect.uninterruptible(a.run(Lock.runExclusive("k", work.effect))))
          yield* settle
          worker.interruptUnsafe()
          yield* settle
          yield* holder.release
          yield* work.started
          yield* settle
          assert.strictEqual(work.running, 1)
          yield* work.end(1)
          yield* Fiber.await(worker)
          assert.strictEqual(work.stopped, 0)
          assert.isTrue(yield* isFree(b, "k"))
        }))

      test("that ignores interruption keeps the lock until it ends, but not its caller", (cluster, logs) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const work = yield* gated()
          const stubborn = Effect.uninterruptible(work.effect)
          const worker = yield* start(a.run(Lock.runExclusive("k", stubborn, { ttl: "1 second" })))
          yield* work.started
          yield* within(6, Fiber.interrupt(worker))
          assert.isTrue(logs.some(({ level, message }) => level === "WARN" && String(message).includes("left behind")))
          assert.strictEqual(work.running, 1)
          assert.isFalse(yield* isFree(b, "k"))
          yield* work.end()
          yield* eventually(backend, isFree(b, "k"), "the release")
        }))

      test("that ignores losing its lease is not taken for done", (cluster) =>
        Effect.gen(function* () {
          const [a, b] = yield* two(cluster)
          const work = yield* gated()
          const stubborn = Effect.uninterruptible(work.effect)
          const options = { ttl: "300 millis", renew: false } as const
          const worker = yield* start(a.run(Lock.runExclusive("k", stubborn, options)))
          yield* work.started
          const waiter = yield* start(pass(b, "k"))
          yield* backend.advance("600 millis")
          yield* within(1, Fiber.join(waiter))
          yield* work.end()
          yield* failsWith("LockLost", within(6, Fiber.join(worker)))
        }))

      test("that ends in the moment it is told is protected to its end", (cluster) =>
        Effect.gen(function* () {
          const a = yield* cluster.instance()
          const options = { ttl: "500 millis", renew: false } as const
          const inTime = a.run(Lock.runExclusive("k", Effect.delay(Effect.succeed(1), "200 millis"), options))
          assert.strictEqual(yield* within(2, inTime), 1)
          const tooLate = a.run(Lock.runExclusive("k", Effect.delay(Effect.succeed(1), "1 second"), options))
          yield* failsWith("LockLost", within(2, tooLate))
        }))
    })

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

    it.effect.prop(
      "exclusion, order and fences hold, and no trace is left, whoever comes, waits, goes or is interrupted",
      { actors: Schema.Array(Actor).check(Schema.isMinLength(2), Schema.isMaxLength(14)) },
      ({ actors }) => scenario((cluster) => play(backend, cluster, actors)),
      { timeout: 180_000, arbitrary: { runs: options.propertyRuns ?? 150, size: 30 } }
    )
  })
}

/** Someone who comes, one tick after the one before, asks for the lock in one of the ways, holds it and goes. */
const Actor = Schema.Struct({
  instance: Schema.Literals([0, 1, 2]),
  key: Schema.Literals(["k", "k", "k", "other"]),
  way: Schema.Literals(["acquire", "runExclusive", "tryAcquire", "tryAcquire 3 ticks", "never renewed"]),
  /** In ticks; 0 goes at once. */
  holds: Schema.Literals([0, 0, 1, 2, 5]),
  ends: Schema.Literals(["well", "well", "failing", "dying"]),
  /** In ticks after it came; at the half tick, or with whatever else happens on it. */
  interrupted: Schema.Literals(["never", "never", "never", 0, 0.5, 1, 1.5, 2, 3, 5])
})
type Actor = typeof Actor.Type

/** Milliseconds. */
const tick = 40

interface Grant {
  readonly actor: number
  readonly fence: number
}

const play = (backend: Backend, cluster: TestBackend, actors: ReadonlyArray<Actor>) =>
  Effect.gen(function* () {
    const instances = [yield* cluster.instance(), yield* cluster.instance(), yield* cluster.instance()]
    const grants: Record<Actor["key"], Array<Grant>> = { k: [], other: [] }
    const holders: Record<Actor["key"], number> = { k: 0, other: 0 }

    const work = (actor: Actor, index: number) => (lease: Lock.Lease) =>
      Effect.suspend(() => {
        assert.strictEqual(holders[actor.key], 0, `actor ${index} came while another held "${actor.key}"`)
        holders[actor.key]++
        grants[actor.key].push({ actor: index, fence: lease.fence })
        return Effect.sleep(actor.holds * tick).pipe(
          Effect.andThen(
            Effect.suspend(() =>
              actor.ends === "well" ? Effect.void : actor.ends === "failing" ? Effect.fail("no") : Effect.die("broken")
            )
          ),
          Effect.ensuring(
            Effect.sync(() => {
              holders[actor.key]--
            })
          )
        )
      })

    const act = (actor: Actor, index: number): Effect.Effect<unknown, unknown, Lock.Lock> => {
      const holdIt = work(actor, index)
      switch (actor.way) {
        case "acquire":
          return Effect.scoped(Effect.flatMap(Lock.acquire(actor.key, { ttl: tick * 3 }), holdIt))
        case "runExclusive":
          return Lock.runExclusive(actor.key, holdIt, { ttl: tick * 3 })
        case "never renewed":
          // Loses the lease when it holds longer, and is interrupted by that.
          return Lock.runExclusive(actor.key, holdIt, { ttl: tick * 3, renew: false })
        case "tryAcquire":
        case "tryAcquire 3 ticks":
          return Effect.scoped(
            Effect.flatMap(
              Lock.tryAcquire(actor.key, { timeout: actor.way === "tryAcquire" ? 0 : tick * 3 }),
              Option.match({ onNone: () => Effect.void, onSome: holdIt })
            )
          )
      }
    }

    const fibers: Array<Fiber.Fiber<unknown, unknown>> = []
    for (const [index, actor] of actors.entries()) {
      const fiber = yield* start(instances[actor.instance]!.run(act(actor, index)))
      fibers.push(fiber)
      if (actor.interrupted !== "never") {
        yield* start(Effect.delay(Fiber.interrupt(fiber), actor.interrupted * tick))
      }
      yield* backend.advance(tick)
    }
    yield* eventually(
      backend,
      Effect.sync(() => fibers.every(hasEnded)),
      "the end of every actor",
      { step: tick }
    )

    for (const fiber of fibers) {
      const exit = yield* Fiber.await(fiber)
      const assertion = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
      if (assertion instanceof Error && assertion.name === "AssertionError") throw assertion
    }
    for (const granted of Object.values(grants)) {
      for (let i = 1; i < granted.length; i++) {
        assert.isAbove(granted[i]!.actor, granted[i - 1]!.actor, "first come, first served")
        assert.isAbove(granted[i]!.fence, granted[i - 1]!.fence, "fences increase")
      }
    }
    for (const [index, actor] of actors.entries()) {
      if (actor.interrupted === "never" && !actor.way.startsWith("tryAcquire")) {
        assert.isTrue(
          grants[actor.key].some((grant) => grant.actor === index),
          `actor ${index} was served`
        )
      }
    }
    for (const key of ["k", "other"]) {
      for (const instance of instances) assert.isTrue(yield* isFree(instance, key), "no trace is left")
    }
  })
