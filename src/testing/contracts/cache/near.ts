/** Near caches. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Cache } from "../../../index.ts"
import type { TestInstance } from "../Backend.ts"
import { eventually } from "../support.ts"
import { Falsy, type Fixture, falsy, numbers, refused } from "./fixture.ts"

export const tests = ({ backend, test }: Fixture): void => {
  describe("near", () => {
    const nearOn = (instance: TestInstance, options?: Cache.Options) => numbers(instance, { near: true, ...options })

    /** Waits until an instance reads what it should; how long that takes is the broadcast's. */
    const reads = (cache: Cache.NamedCache<number>, key: string, expected: number | undefined) =>
      eventually(
        backend,
        Effect.map(cache.get(key), (value) => Option.getOrUndefined(value) === expected),
        `${key} is ${expected}`,
        { step: "10 millis" }
      )

    const changes: ReadonlyArray<
      readonly [
        name: string,
        change: (cache: Cache.NamedCache<number>) => Effect.Effect<unknown, Cache.CacheError>,
        expected: number | undefined
      ]
    > = [
      ["set", (cache) => cache.set("k", 2), 2],
      ["mset", (cache) => cache.mset(new Map([["k", 2]])), 2],
      ["del", (cache) => cache.del("k"), undefined],
      ["mdel", (cache) => cache.mdel(["other", "k"]), undefined],
      ["reset", (cache) => cache.reset, undefined],
      ["del and wrap", (cache) => Effect.andThen(cache.del("k"), cache.wrap("k", Effect.succeed(2))), 2],
      [
        "mset of thousands",
        (cache) => cache.mset(Array.from({ length: 3_000 }, (_, i) => [i === 2_000 ? "k" : `${i}`, 2] as const)),
        2
      ]
    ]
    for (const [name, change, expected] of changes) {
      test(`a ${name} is read at once where it happened, and soon everywhere`, (cluster) =>
        Effect.gen(function* () {
          const instances = [yield* cluster.instance(), yield* cluster.instance(), yield* cluster.instance()]
          const [a, b, c] = yield* Effect.forEach(instances, (instance) =>
            nearOn(instance, { near: { ttl: "1 hour" } })
          )
          for (const changed of [a!, b!]) {
            yield* c!.set("k", 1)
            for (const cache of [a!, b!, c!]) yield* reads(cache, "k", 1)
            for (const cache of [a!, b!, c!])
              assert.deepStrictEqual(yield* cache.mget(["k", "k"]), [Option.some(1), Option.some(1)])
            yield* change(changed)
            assert.deepStrictEqual(yield* changed.get("k"), Option.fromUndefinedOr(expected))
            for (const cache of [a!, b!, c!]) yield* reads(cache, "k", expected)
            assert.deepStrictEqual(yield* b!.mget(["none", "k"]), [Option.none(), Option.fromUndefinedOr(expected)])
          }
        }))
    }

    test("a write through a cache that is not near is told, too, where it is near as well", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* nearOn(yield* cluster.instance(), { near: { ttl: "1 hour" } })
        const plain = yield* numbers(a)
        const near = yield* nearOn(a, { near: { ttl: "1 hour" } })
        yield* plain.set("k", 1)
        for (const cache of [near, b]) yield* reads(cache, "k", 1)
        yield* plain.set("k", 2)
        assert.deepStrictEqual(yield* near.get("k"), Option.some(2))
        yield* reads(b, "k", 2)
      }))

    test("an entry that has expired is as good as none", (cluster) =>
      Effect.gen(function* () {
        const a = yield* nearOn(yield* cluster.instance())
        const b = yield* nearOn(yield* cluster.instance())
        yield* a.set("k", 1, { ttl: "1 second" })
        yield* cluster.arrived
        for (const cache of [a, b]) assert.deepStrictEqual(yield* cache.get("k"), Option.some(1))
        yield* backend.advance("500 millis")
        for (const cache of [a, b]) assert.strictEqual(yield* cache.wrap("k", Effect.succeed(2)), 1)
        yield* backend.advance("700 millis")
        for (const cache of [a, b]) {
          assert.deepStrictEqual(yield* cache.get("k"), Option.none())
          assert.deepStrictEqual(yield* cache.mget(["k"]), [Option.none()])
        }
        assert.strictEqual(yield* a.wrap("k", Effect.succeed(2)), 2)
      }))

    test("what is near is each caller's own", (cluster) =>
      Effect.gen(function* () {
        const List = Schema.Struct({ list: Schema.Array(Schema.Struct({ n: Schema.Number })) })
        const cache = yield* (yield* cluster.instance()).run(Cache.make("lists", List, { near: true }))
        yield* cache.set("k", { list: [{ n: 1 }] })
        for (let i = 0; i < 5; i++) {
          const value = Option.getOrThrow(yield* cache.get("k"))
          assert.deepStrictEqual(value, { list: [{ n: 1 }] })
          Object.assign(value.list[0]!, { n: 2 })
        }
      }))

    test('0, false, "" and null are values, not misses', (cluster) =>
      Effect.gen(function* () {
        const cache = yield* (yield* cluster.instance()).run(Cache.make("falsy", Falsy, { near: true }))
        for (const value of falsy) {
          yield* cache.set("k", value)
          for (let i = 0; i < 3; i++) {
            assert.deepStrictEqual(yield* cache.get("k"), Option.some(value))
            assert.strictEqual(yield* cache.wrap("k", Effect.succeed("loaded")), value)
          }
        }
      }))

    test("a capacity or ttl that makes no sense is refused", (cluster) =>
      Effect.gen(function* () {
        const instance = yield* cluster.instance()
        for (const capacity of [0, -1, 1.5, Number.NaN]) {
          yield* refused(nearOn(instance, { near: { capacity } }), "near.capacity")
        }
        for (const ttl of [0, -1, Number.NaN, Number.POSITIVE_INFINITY, "soon" as "1 second"]) {
          yield* refused(nearOn(instance, { near: { ttl } }), "near.ttl")
        }
      }))
  })
}
