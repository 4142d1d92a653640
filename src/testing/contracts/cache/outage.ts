/** While the backend is away. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import { type Cache, Metrics } from "../../../index.ts"
import { counting, eventually } from "../support.ts"
import { type Cluster, counted, type Fixture, gated, numbers, start, unavailable, warnings } from "./fixture.ts"

export const tests = ({ backend, within, settle, readsFollowWrites, test }: Fixture): void => {
  describe("without its backend", () => {
    /** An instance that was cut off, and one that was not. */
    const cut = (cluster: Cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const here = yield* numbers(a)
        const there = yield* numbers(b)
        yield* here.set("k", 1)
        yield* Effect.addFinalizer(() => a.reconnect)
        yield* cluster.arrived
        yield* a.disconnect
        if (!readsFollowWrites) {
          // Until it has noticed, it answers from memory.
          yield* eventually(backend, Effect.isFailure(here.get("k")), "it notices")
        }
        return { a, here, there }
      })

    test("every operation but wrap fails typed within 5 seconds, and works again afterwards", (cluster) =>
      Effect.gen(function* () {
        const { a, here, there } = yield* cut(cluster)
        const operations: ReadonlyArray<Effect.Effect<unknown, Cache.CacheError>> = [
          here.get("k"),
          here.set("k", 2),
          here.del("k"),
          here.has("k"),
          here.ttl("k"),
          here.keys(),
          here.reset,
          here.mget(["k"]),
          here.mset([["k", 2]]),
          here.mdel(["k"])
        ]
        yield* within(6, Effect.forEach(operations, unavailable, { concurrency: "unbounded" }))
        assert.deepStrictEqual(yield* there.get("k"), Option.some(1))
        yield* a.reconnect
        assert.deepStrictEqual(yield* within(6, here.get("k")), Option.some(1))
      }))

    test("wrap runs the load once and returns its value, with a warning", (cluster, logs) =>
      Effect.gen(function* () {
        const { a, here } = yield* cut(cluster)
        const wraps = {
          plain: <E>(load: Effect.Effect<number, E>) => here.wrap("k", load),
          exclusive: <E>(load: Effect.Effect<number, E>) => a.run(here.wrap("k", load, { exclusive: true })),
          condition: <E>(load: Effect.Effect<number, E>) => here.wrapWithCondition("k", load)
        }
        for (const [how, wrap] of Object.entries(wraps)) {
          logs.length = 0
          const bypassed = yield* counting(Metrics.cacheBypassed)
          const load = counted(2)
          assert.strictEqual(yield* within(6, wrap(load.effect)), 2, how)
          assert.strictEqual(load.runs, 1, how)
          assert.lengthOf(warnings(logs, "without"), 1, how)
          assert.deepInclude(warnings(logs, "without")[0]!.annotations, { cache: "numbers", key: "k" })
          assert.strictEqual(yield* bypassed, 1)
          let runs = 0
          const failing = Effect.suspend(() => {
            runs++
            return Effect.fail("no")
          })
          assert.strictEqual(yield* within(6, Effect.flip(wrap(failing))), "no", how)
          assert.strictEqual(runs, 1, how)
        }
      }))

    test("many callers still share one load", (cluster) =>
      Effect.gen(function* () {
        const { here } = yield* cut(cluster)
        const load = yield* gated<number>()
        const callers = yield* Effect.forEach(Array.from({ length: 10 }), () => start(here.wrap("k", load.effect)))
        yield* within(6, load.started)
        yield* settle
        yield* load.open(Exit.succeed(2))
        for (const caller of callers) assert.strictEqual(yield* Fiber.join(caller), 2)
        assert.strictEqual(load.runs, 1)
      }))

    test("a backend that goes away during a load takes nothing from its value", (cluster, logs) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        yield* Effect.addFinalizer(() => a.reconnect)
        const cache = yield* numbers(a)
        const load = yield* gated<number>()
        const caller = yield* start(cache.wrap("k", load.effect))
        yield* load.started
        yield* a.disconnect
        yield* load.open(Exit.succeed(1))
        assert.strictEqual(yield* within(6, Fiber.join(caller)), 1)
        assert.strictEqual(load.runs, 1)
        assert.lengthOf(warnings(logs, "unavailable"), 1)
      }))

    test("useCache: false does not notice", (cluster, logs) =>
      Effect.gen(function* () {
        const { here } = yield* cut(cluster)
        logs.length = 0
        assert.strictEqual(yield* here.wrapWithCondition("k", Effect.succeed(2), { useCache: false }), 2)
        assert.lengthOf(warnings(logs, ""), 0)
      }))
  })
}
