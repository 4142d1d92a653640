/** Loads: one for all who wait, in an instance and in the cluster. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Cache } from "../../../index.ts"
import { counted, type Fixture, gated, numbers, start } from "./fixture.ts"

export const tests = ({ backend, within, settle, scenario, test }: Fixture): void => {
  describe("wrap", () => {
    test("loads what is not there, stores it with the ttl, and then reads it", (cluster) =>
      Effect.gen(function* () {
        const a = yield* numbers(yield* cluster.instance())
        const b = yield* numbers(yield* cluster.instance())
        const load = counted(1)
        assert.strictEqual(yield* a.wrap("k", load.effect, { ttl: "500 millis" }), 1)
        assert.strictEqual(yield* a.wrap("k", load.effect, { ttl: "500 millis" }), 1)
        yield* cluster.arrived
        assert.strictEqual(yield* b.wrap("k", load.effect, { ttl: "500 millis" }), 1)
        assert.strictEqual(load.runs, 1)
        yield* backend.advance("700 millis")
        assert.strictEqual(yield* b.wrap("k", load.effect), 1)
        assert.strictEqual(load.runs, 2)
      }))

    test("one load per key per instance, however many callers wait", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        const load = yield* gated<number>()
        const other = counted(2)
        const callers = yield* Effect.forEach(Array.from({ length: 100 }), (_, i) =>
          start(i % 2 === 0 ? cache.wrap("k", load.effect) : cache.wrapWithCondition("k", load.effect))
        )
        yield* load.started
        yield* settle
        assert.strictEqual(yield* cache.wrap("other key", other.effect), 2)
        yield* load.open(Exit.succeed(1))
        for (const caller of callers) assert.strictEqual(yield* Fiber.join(caller), 1)
        assert.strictEqual(load.runs, 1)
      }))

    test("equal keys of two caches are two loads", (cluster) =>
      Effect.gen(function* () {
        const instance = yield* cluster.instance()
        const one = yield* instance.run(Cache.make("a:b", Schema.String))
        const two = yield* instance.run(Cache.make("a", Schema.String))
        for (const [key, other] of [
          ["k", "k"],
          ["c", "b:c"]
        ] as const) {
          const first = yield* gated<string>()
          const second = yield* gated<string>()
          const callers = [yield* start(one.wrap(key, first.effect)), yield* start(two.wrap(other, second.effect))]
          yield* within(1, first.started)
          yield* within(1, second.started)
          yield* first.open(Exit.succeed("first"))
          yield* second.open(Exit.succeed("second"))
          assert.deepStrictEqual(yield* Effect.forEach(callers, Fiber.join), ["first", "second"])
        }
      }))

    test("a failure is not cached, and every waiter sees it", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        for (const exit of [Exit.fail("no"), Exit.die("broken")]) {
          const load = yield* gated<number, string>()
          const callers = yield* Effect.forEach(Array.from({ length: 10 }), () => start(cache.wrap("k", load.effect)))
          yield* load.started
          yield* settle
          yield* load.open(exit)
          for (const caller of callers) assert.deepStrictEqual(yield* Fiber.await(caller), exit)
          assert.strictEqual(load.runs, 1)
          assert.isFalse(yield* cache.has("k"))
        }
        assert.strictEqual(yield* cache.wrap("k", Effect.succeed(1)), 1)
        assert.deepStrictEqual(yield* cache.get("k"), Option.some(1))
      }))

    test("a load that throws or fails at once is not cached either", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        const thrown = new Error("thrown")
        const broken = Effect.sync((): number => {
          throw thrown
        })
        assert.deepStrictEqual(yield* Effect.exit(cache.wrap("k", broken)), Exit.die(thrown))
        assert.strictEqual(yield* Effect.flip(cache.wrap("k", Effect.fail("no"))), "no")
        assert.strictEqual(yield* cache.wrap("k", Effect.succeed(1)), 1)
      }))

    test("one waiter's interruption leaves the others unharmed, whoever began the load", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        const load = yield* gated<number>()
        const callers = yield* Effect.forEach(Array.from({ length: 4 }), () => start(cache.wrap("k", load.effect)))
        yield* load.started
        yield* settle
        yield* Fiber.interrupt(callers[0]!)
        yield* Fiber.interrupt(callers[2]!)
        assert.strictEqual(load.stopped, 0)
        const late = yield* start(cache.wrap("k", load.effect))
        yield* settle
        yield* load.open(Exit.succeed(1))
        for (const caller of [callers[1]!, callers[3]!, late]) assert.strictEqual(yield* Fiber.join(caller), 1)
        assert.strictEqual(load.runs, 1)
        assert.deepStrictEqual(yield* cache.get("k"), Option.some(1))
      }))

    test("the last waiter's interruption stops the load; the next caller starts another", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        const load = yield* gated<number>()
        const callers = yield* Effect.forEach(Array.from({ length: 3 }), () => start(cache.wrap("k", load.effect)))
        yield* load.started
        yield* settle
        for (const caller of callers) yield* Fiber.interrupt(caller)
        assert.strictEqual(load.stopped, 1)
        yield* load.open(Exit.succeed(1))
        yield* settle
        assert.isFalse(yield* cache.has("k"))
        assert.strictEqual(yield* cache.wrap("k", Effect.succeed(2)), 2)
        assert.deepStrictEqual(yield* cache.get("k"), Option.some(2))
      }))

    test("a load that ignores interruption does not hold up its last waiter for ever", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        const load = yield* gated<number>()
        const caller = yield* start(cache.wrap("k", Effect.uninterruptible(load.effect)))
        yield* load.started
        yield* within(6, Fiber.interrupt(caller))
        assert.strictEqual(yield* cache.wrap("k", Effect.succeed(2)), 2)
        yield* load.open(Exit.succeed(1))
      }))

    const removals: ReadonlyArray<
      readonly [string, (cache: Cache.NamedCache<number>) => Effect.Effect<unknown, Cache.CacheError>]
    > = [
      ["del", (cache) => cache.del("k")],
      ["mdel", (cache) => cache.mdel(["other", "k"])],
      ["reset", (cache) => cache.reset],
      ["set and del", (cache) => Effect.andThen(cache.set("k", 2), cache.del("k"))],
      ["del and a reset", (cache) => Effect.andThen(cache.del("k"), cache.reset)]
    ]
    const writes: typeof removals = [
      ["set", (cache) => cache.set("k", 2)],
      ["mset", (cache) => cache.mset(new Map([["k", 2]]))],
      ["reset and set", (cache) => Effect.andThen(cache.reset, cache.set("k", 2))],
      ["del and set", (cache) => Effect.andThen(cache.del("k"), cache.set("k", 2, { ttl: "1 minute" }))]
    ]
    for (const from of ["this", "another"] as const) {
      const during = (change: (cache: Cache.NamedCache<number>) => Effect.Effect<unknown, Cache.CacheError>) =>
        scenario((cluster) =>
          Effect.gen(function* () {
            const a = yield* numbers(yield* cluster.instance())
            const b = yield* numbers(yield* cluster.instance())
            const load = yield* gated<number>()
            const caller = yield* start(a.wrap("k", load.effect))
            yield* load.started
            yield* change(from === "this" ? a : b)
            yield* load.open(Exit.succeed(1))
            assert.strictEqual(yield* Fiber.join(caller), 1)
            yield* settle
            yield* cluster.arrived
            const kept = yield* a.get("k")
            assert.deepStrictEqual(yield* b.get("k"), kept)
            return kept
          })
        )
      for (const [name, change] of removals) {
        it.effect(`a ${name} from ${from} instance during a load wins over its write`, () =>
          Effect.map(during(change), (kept) => assert.deepStrictEqual(kept, Option.none()))
        )
      }
      for (const [name, change] of writes) {
        it.effect(`a ${name} from ${from} instance during a load wins over its write`, () =>
          Effect.map(during(change), (kept) => assert.deepStrictEqual(kept, Option.some(2)))
        )
      }
    }

    for (const [name, change] of removals) {
      test(`a wrap after a ${name} does not get what a load from before it returns`, (cluster) =>
        Effect.gen(function* () {
          const cache = yield* numbers(yield* cluster.instance())
          const load = yield* gated<number>()
          const early = yield* start(cache.wrap("k", load.effect))
          yield* load.started
          yield* change(cache)
          assert.strictEqual(yield* cache.wrap("k", Effect.succeed(2)), 2)
          yield* load.open(Exit.succeed(1))
          assert.strictEqual(yield* Fiber.join(early), 1)
          assert.deepStrictEqual(yield* cache.get("k"), Option.some(2))
        }))
    }

    test("a del during a load leaves loads of other keys, and the next load, alone", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        const load = yield* gated<number>()
        const caller = yield* start(cache.wrap("k", load.effect))
        yield* load.started
        yield* cache.del("other")
        yield* cache.set("another", 1)
        yield* load.open(Exit.succeed(1))
        yield* Fiber.join(caller)
        assert.deepStrictEqual(yield* cache.get("k"), Option.some(1))
        yield* cache.del("k")
        yield* cache.wrap("k", Effect.succeed(2))
        assert.deepStrictEqual(yield* cache.get("k"), Option.some(2))
      }))

    test("a load may use the cache itself", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        const sum: Effect.Effect<number, Cache.CacheError> = Effect.gen(function* () {
          const one = yield* cache.wrap("one", Effect.succeed(1))
          yield* cache.set("noted", one)
          return one + 1
        })
        assert.strictEqual(yield* cache.wrap("sum", sum), 2)
        assert.deepStrictEqual(yield* cache.mget(["one", "noted", "sum"]), [1, 1, 2].map(Option.some))
      }))
  })

  describe("wrap, exclusive", () => {
    const three = (cluster: Parameters<Parameters<typeof scenario>[0]>[0]) =>
      Effect.gen(function* () {
        const instances = [yield* cluster.instance(), yield* cluster.instance(), yield* cluster.instance()]
        return yield* Effect.forEach(instances, (instance) =>
          Effect.map(numbers(instance), (cache) => ({
            cache,
            wrap: <E>(load: Effect.Effect<number, E>, key = "k") =>
              instance.run(cache.wrap(key, load, { exclusive: true, ttl: "1 minute" }))
          }))
        )
      })

    test("one load per cluster: who gets the lock looks again", (cluster) =>
      Effect.gen(function* () {
        const instances = yield* three(cluster)
        const load = yield* gated<number>()
        const callers: Array<Fiber.Fiber<number, Cache.CacheError>> = []
        for (const { wrap } of instances) {
          for (let i = 0; i < 5; i++) callers.push(yield* start(wrap(load.effect)))
        }
        yield* load.started
        yield* settle
        yield* load.open(Exit.succeed(1))
        for (const caller of callers) assert.strictEqual(yield* Fiber.join(caller), 1)
        assert.strictEqual(load.runs, 1)
      }))

    test("keys do not wait for each other, and may be as long as any", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* three(cluster)
        const first = yield* gated<number>()
        const second = yield* gated<number>()
        const long = "x".repeat(65_536)
        const callers = [yield* start(a!.wrap(first.effect, long))]
        yield* first.started
        callers.push(yield* start(b!.wrap(second.effect, long)), yield* start(b!.wrap(second.effect, "short")))
        yield* second.started
        yield* settle
        assert.deepStrictEqual([first.runs, second.runs], [1, 1])
        yield* first.open(Exit.succeed(1))
        yield* second.open(Exit.succeed(2))
        assert.deepStrictEqual(yield* Effect.forEach(callers, Fiber.join), [1, 1, 2])
      }))

    test("a failure stays on its instance: the next one loads", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* three(cluster)
        const failing = yield* gated<number, string>()
        const load = counted(2)
        const first = yield* start(a!.wrap(failing.effect))
        yield* failing.started
        const second = yield* start(b!.wrap(load.effect))
        yield* settle
        assert.strictEqual(load.runs, 0)
        yield* failing.open(Exit.fail("no"))
        assert.strictEqual(yield* Effect.flip(Fiber.join(first)), "no")
        assert.strictEqual(yield* Fiber.join(second), 2)
      }))

    test("a load that is stopped leaves the lock to the next one", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* three(cluster)
        const stuck = yield* gated<number>()
        const first = yield* start(a!.wrap(stuck.effect))
        yield* stuck.started
        const second = yield* start(b!.wrap(Effect.succeed(2)))
        yield* settle
        yield* Fiber.interrupt(first)
        assert.strictEqual(stuck.stopped, 1)
        assert.strictEqual(yield* Fiber.join(second), 2)
      }))

    test("a del from another instance during the load wins", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* three(cluster)
        const load = yield* gated<number>()
        const caller = yield* start(a!.wrap(load.effect))
        yield* load.started
        yield* b!.cache.del("k")
        yield* load.open(Exit.succeed(1))
        assert.strictEqual(yield* Fiber.join(caller), 1)
        yield* cluster.arrived
        assert.isFalse(yield* b!.cache.has("k"))
      }))
  })

  describe("wrapWithCondition", () => {
    test("useCache: false neither reads nor writes", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        yield* cache.set("there", 1)
        const load = counted(2)
        for (const key of ["there", "not there"]) {
          assert.strictEqual(yield* cache.wrapWithCondition(key, load.effect, { useCache: false }), 2)
        }
        assert.strictEqual(load.runs, 2)
        assert.deepStrictEqual(yield* cache.get("there"), Option.some(1))
        assert.isFalse(yield* cache.has("not there"))
        assert.strictEqual(yield* cache.wrapWithCondition("there", load.effect, { useCache: true }), 1)
      }))

    test("isCacheable sees the value and decides what is stored; it may be an Effect", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        const seen: Array<number> = []
        const positive = (value: number) => {
          seen.push(value)
          return value > 0
        }
        for (const [how, isCacheable] of [
          ["plain", positive],
          ["effect", (value: number) => Effect.sync(() => positive(value))],
          ["slow", (value: number) => Effect.andThen(Effect.yieldNow, () => Effect.succeed(positive(value)))]
        ] as const) {
          assert.strictEqual(yield* cache.wrapWithCondition(`${how} no`, Effect.succeed(-1), { isCacheable }), -1)
          assert.strictEqual(yield* cache.wrapWithCondition(`${how} yes`, Effect.succeed(1), { isCacheable }), 1)
          assert.isFalse(yield* cache.has(`${how} no`))
          assert.isTrue(yield* cache.has(`${how} yes`))
          assert.strictEqual(yield* cache.wrapWithCondition(`${how} yes`, Effect.die("hit"), { isCacheable }), 1)
        }
        assert.deepStrictEqual(seen, [-1, 1, -1, 1, -1, 1])
      }))

    test("isCacheable that fails fails the call, and stores nothing", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        const isCacheable = () => Effect.fail("cannot say" as const)
        const failed = yield* Effect.flip(cache.wrapWithCondition("k", Effect.succeed(1), { isCacheable }))
        assert.strictEqual(failed, "cannot say")
        assert.isFalse(yield* cache.has("k"))
      }))

    test("a value that is not cacheable leaves what was set meanwhile", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        const setMeanwhile = Effect.as(cache.set("k", 2), 1)
        yield* cache.wrapWithCondition("k", setMeanwhile, { isCacheable: () => false })
        assert.deepStrictEqual(yield* cache.get("k"), Option.some(2))
      }))
  })
}
