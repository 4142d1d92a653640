/** How entries end, go, and are named. */
import { assert, describe } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Cache, Lock } from "../../../index.ts"
import type { TestInstance } from "../Backend.ts"
import { type Fixture, numbers, oddKeys } from "./fixture.ts"

export const tests = ({ backend, test }: Fixture): void => {
  describe("ttl", () => {
    test("an entry that has expired is as good as none", (cluster) =>
      Effect.gen(function* () {
        const a = yield* numbers(yield* cluster.instance())
        const b = yield* numbers(yield* cluster.instance())
        yield* a.set("short", 1, { ttl: "1500 millis" })
        yield* a.mset([["shorter", 1]], { ttl: "1400 millis" })
        yield* a.wrap("loaded", Effect.succeed(1), { ttl: "1500 millis" })
        yield* a.wrapWithCondition("asked", Effect.succeed(1), { ttl: "1500 millis" })
        yield* a.set("long", 1, { ttl: "10 seconds" })
        yield* a.set("forever", 1)
        yield* cluster.arrived
        const short = ["short", "shorter", "loaded", "asked"]
        yield* backend.advance("200 millis")
        for (const key of short) assert.deepStrictEqual(yield* b.get(key), Option.some(1), key)
        yield* backend.advance("1500 millis")
        for (const cache of [a, b]) {
          for (const key of short) {
            assert.deepStrictEqual(yield* cache.get(key), Option.none(), key)
            assert.isFalse(yield* cache.has(key))
            assert.deepStrictEqual(yield* cache.ttl(key), Option.none())
            assert.isFalse(yield* cache.del(key))
          }
          assert.deepStrictEqual(yield* cache.mget(short), short.map(Option.none))
          assert.deepStrictEqual((yield* cache.keys()).sort(), ["forever", "long"])
          assert.strictEqual(yield* cache.mdel(short), 0)
        }
      }))

    test("the cache's own ttl holds when a call does not say; a call's wins; Infinity is for ever", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance(), { ttl: "500 millis" })
        yield* cache.set("default", 1)
        yield* cache.wrap("loaded", Effect.succeed(1))
        yield* cache.set("longer", 1, { ttl: "5 seconds" })
        yield* cache.set("forever", 1, { ttl: Number.POSITIVE_INFINITY })
        yield* cache.wrap("loaded forever", Effect.succeed(1), { ttl: Duration.infinity })
        yield* backend.advance("800 millis")
        assert.deepStrictEqual((yield* cache.keys()).sort(), ["forever", "loaded forever", "longer"])
        assert.deepStrictEqual(yield* cache.ttl("forever"), Option.some(Duration.infinity))
        assert.deepStrictEqual(yield* cache.ttl("loaded forever"), Option.some(Duration.infinity))
      }))

    test("ttl tells the time left", (cluster) =>
      Effect.gen(function* () {
        const a = yield* numbers(yield* cluster.instance())
        const b = yield* numbers(yield* cluster.instance())
        yield* a.set("k", 1, { ttl: "2 seconds" })
        yield* backend.advance("500 millis")
        yield* cluster.arrived
        const left = Duration.toMillis(Option.getOrThrow(yield* b.ttl("k")))
        assert.isAtMost(left, 1_500)
        assert.isAtLeast(left, 1_000)
        yield* a.set("ever", 1)
        yield* cluster.arrived
        assert.deepStrictEqual(yield* b.ttl("ever"), Option.some(Duration.infinity))
        assert.deepStrictEqual(yield* b.ttl("none"), Option.none())
      }))

    test("a write replaces the ttl of the entry before it", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        for (const key of ["longer", "forever"]) yield* cache.set(key, 1, { ttl: "300 millis" })
        yield* cache.set("shorter", 1)
        yield* cache.set("longer", 2, { ttl: "10 seconds" })
        yield* cache.set("forever", 2)
        yield* cache.set("shorter", 2, { ttl: "300 millis" })
        yield* backend.advance("600 millis")
        assert.deepStrictEqual((yield* cache.keys()).sort(), ["forever", "longer"])
      }))
  })

  describe("del, mget, mset, mdel, has", () => {
    test("del, mdel and has tell what there was", (cluster) =>
      Effect.gen(function* () {
        const a = yield* numbers(yield* cluster.instance())
        const b = yield* numbers(yield* cluster.instance())
        yield* a.mset([
          ["1", 1],
          ["2", 2],
          ["3", 3]
        ])
        yield* cluster.arrived
        assert.isTrue(yield* b.has("1"))
        assert.isTrue(yield* b.del("1"))
        yield* cluster.arrived
        assert.isFalse(yield* a.del("1"))
        assert.isFalse(yield* a.has("1"))
        assert.strictEqual(yield* b.mdel(["1", "2", "3", "3", "none"]), 2)
        assert.strictEqual(yield* b.mdel([]), 0)
        yield* cluster.arrived
        assert.deepStrictEqual(yield* a.keys(), [])
      }))

    test("mget keeps order and duplicates", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        yield* cache.mset([
          ["a", 1],
          ["b", 2],
          ["c", 3]
        ])
        const keys = ["c", "none", "a", "c", "b", "none", "a"]
        assert.deepStrictEqual(
          yield* cache.mget(keys),
          [3, undefined, 1, 3, 2, undefined, 1].map(Option.fromUndefinedOr)
        )
        assert.deepStrictEqual(yield* cache.mget([]), [])
      }))

    test("mset takes any iterable, and the last of two equal keys", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        yield* cache.mset(new Map([["map", 1]]))
        yield* cache.mset([])
        const twice = cache.mset(
          (function* () {
            yield ["k", 1] as const
            yield ["k", 2] as const
          })()
        )
        yield* twice
        assert.deepStrictEqual(yield* cache.mget(["map", "k"]), [Option.some(1), Option.some(2)])
      }))
  })

  describe("names and keys", () => {
    test("keys and prefixes may hold any character, and are 10 kB long if need be", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        for (const prefix of ["plain", "*", "a:b", "[a-z]*", "{x}", "\\", "?"]) {
          const here = yield* numbers(a, { prefix })
          const there = yield* numbers(b, { prefix })
          for (const [i, key] of oddKeys.entries()) yield* here.set(key, i)
          yield* cluster.arrived
          assert.deepStrictEqual((yield* there.keys()).sort(), [...oddKeys].sort())
          assert.deepStrictEqual(
            yield* there.mget(oddKeys),
            oddKeys.map((_, i) => Option.some(i))
          )
          for (const [i, key] of oddKeys.entries()) {
            assert.deepStrictEqual(yield* there.get(key), Option.some(i), key.slice(0, 20))
            assert.strictEqual(yield* there.wrap(key, Effect.die("a hit does not load")), i)
            assert.isTrue(yield* there.del(key))
            yield* cluster.arrived
            assert.lengthOf(yield* here.keys(), oddKeys.length - i - 1)
          }
        }
      }))

    test("keys takes a pattern: `*` any characters, `?` one, a backslash for themselves", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance(), { prefix: "p*:[x]" })
        const all = ["user:1", "user:2", "user:10", "user", "a*b", "a-b", "[ab]", "a", "b?", "a\\b", "p*:[x]"]
        for (const key of all) yield* cache.set(key, 1)
        const matches: ReadonlyArray<readonly [string, ReadonlyArray<string>]> = [
          ["*", all],
          ["**", all],
          ["user:*", ["user:1", "user:2", "user:10"]],
          ["user:?", ["user:1", "user:2"]],
          ["*:1*", ["user:1", "user:10"]],
          ["a\\*b", ["a*b"]],
          ["a\\\\b", ["a\\b"]],
          ["a?b", ["a*b", "a-b", "a\\b"]],
          ["[ab]", ["[ab]"]],
          ["b\\?", ["b?"]],
          ["p\\*:*", ["p*:[x]"]],
          ["user", ["user"]],
          ["USER", []],
          ["ser", []],
          ["", []]
        ]
        for (const [pattern, expected] of matches) {
          assert.deepStrictEqual((yield* cache.keys(pattern)).sort(), [...expected].sort(), pattern)
        }
      }))

    test("a hostile pattern does not stall keys", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        yield* cache.set("a".repeat(10_000), 1)
        assert.deepStrictEqual(yield* cache.keys(`${"*a".repeat(200)}*b`), [])
      }))

    test("caches of one prefix share their entries, caches of two do not", (cluster) =>
      Effect.gen(function* () {
        const instance = yield* cluster.instance()
        const one = yield* instance.run(Cache.make("one", Schema.Number, { prefix: "shared" }))
        const two = yield* instance.run(Cache.make("two", Schema.Number, { prefix: "shared" }))
        const shared = yield* instance.run(Cache.make("shared", Schema.Number))
        const other = yield* instance.run(Cache.make("one", Schema.Number))
        assert.strictEqual(one.name, "one")
        yield* one.set("k", 1)
        assert.deepStrictEqual(yield* two.get("k"), Option.some(1))
        assert.deepStrictEqual(yield* shared.get("k"), Option.some(1))
        assert.deepStrictEqual(yield* other.get("k"), Option.none())
      }))

    test("names that would meet if they were joined naively do not meet", (cluster) =>
      Effect.gen(function* () {
        const cache = (app: string, name: string) =>
          Effect.gen(function* () {
            return yield* (yield* cluster.instance({ app })).run(Cache.make(name, Schema.String))
          })
        const addresses: ReadonlyArray<readonly [app: string, name: string, key: string]> = [
          ["a", "b:c", "d"],
          ["a", "b", "c:d"],
          ["a:b", "c", "d"],
          ["a", "cache:b", "k"],
          ["a:cache", "b", "k"],
          ["a", "b%3Ac", "d"],
          ["a%3Ab", "c", "d"],
          ["a", "b:c:d", "e"],
          ["a", "*", "d"],
          ["*", "b", "d"],
          ["A", "b", "c:d"]
        ]
        const caches = yield* Effect.forEach(addresses, ([app, name]) => cache(app, name))
        for (const [i, address] of addresses.entries()) yield* caches[i]!.set(address[2], String(i))
        for (const [i, address] of addresses.entries()) {
          assert.deepStrictEqual(yield* caches[i]!.get(address[2]), Option.some(String(i)), address.join(" | "))
          assert.deepStrictEqual(yield* caches[i]!.keys(), [address[2]])
        }
        for (const [i, { reset }] of caches.entries()) {
          yield* reset
          const left = yield* Effect.forEach(caches, ({ keys }) => keys())
          assert.strictEqual(left.flat().length, addresses.length - i - 1)
        }
      }))

    test("two apps on one backend do not see each other", (cluster) =>
      Effect.gen(function* () {
        const shop = yield* numbers(yield* cluster.instance({ app: "shop" }))
        const blog = yield* numbers(yield* cluster.instance({ app: "blog" }))
        yield* shop.set("k", 1)
        assert.deepStrictEqual(yield* blog.get("k"), Option.none())
        assert.deepStrictEqual(yield* blog.keys(), [])
        assert.isFalse(yield* blog.del("k"))
        yield* blog.set("k", 2)
        yield* blog.reset
        assert.deepStrictEqual(yield* shop.get("k"), Option.some(1))
      }))
  })

  describe("reset", () => {
    test("clears this cache on every instance, and nothing else", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const others = ["user", "users:x", "user*", "users2", "USERS"]
        const cacheOn = (instance: TestInstance, name: string) => instance.run(Cache.make(name, Schema.Number))
        for (const name of [...others, "users"]) {
          const cache = yield* cacheOn(a, name)
          for (const key of ["1", "users:1", "*"]) yield* cache.set(key, 1)
        }
        yield* a.run(Lock.acquire("users"))

        yield* (yield* cacheOn(b, "users")).reset
        yield* cluster.arrived
        for (const instance of [a, b]) {
          const users = yield* cacheOn(instance, "users")
          assert.deepStrictEqual(yield* users.keys(), [])
          assert.deepStrictEqual(yield* users.get("1"), Option.none())
          for (const name of others) assert.lengthOf(yield* (yield* cacheOn(instance, name)).keys(), 3, name)
        }
        assert.isTrue(Option.isNone(yield* b.run(Lock.tryAcquire("users"))))

        const again = yield* cacheOn(a, "users")
        yield* again.set("1", 2)
        yield* cluster.arrived
        assert.deepStrictEqual(yield* (yield* cacheOn(b, "users")).get("1"), Option.some(2))
      }))

    test("takes a time that does not depend on the rest of the store", (cluster) =>
      Effect.gen(function* () {
        const instance = yield* cluster.instance()
        const cache = yield* numbers(instance)
        const rest = yield* instance.run(Cache.make("rest", Schema.Number))
        /** The fastest of many, in milliseconds: the least disturbed one. */
        const fastest = Effect.gen(function* () {
          let best = Number.POSITIVE_INFINITY
          for (let i = 0; i < 30; i++) {
            yield* cache.set("k", 1)
            const before = performance.now()
            yield* cache.reset
            best = Math.min(best, performance.now() - before)
          }
          return best
        })
        const empty = yield* fastest
        for (let batch = 0; batch < 30; batch++) {
          yield* rest.mset(Array.from({ length: 1_000 }, (_, i) => [`${batch}:${i}`, i] as const))
        }
        assert.isBelow(yield* fastest, empty * 5 + 0.5)
        assert.deepStrictEqual(yield* rest.get("29:999"), Option.some(999))
      }))
  })
}
