/** What is set is got, and nothing wrong is stored. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import { Cache, Metrics } from "../../../index.ts"
import { counting } from "../support.ts"
import { badTtls, counted, Falsy, type Fixture, falsy, numbers, refused, start, warnings } from "./fixture.ts"

export const tests = ({ backend, test }: Fixture): void => {
  describe("values", () => {
    test("what one instance sets, every instance gets, as an Option", (cluster) =>
      Effect.gen(function* () {
        const a = yield* numbers(yield* cluster.instance())
        const b = yield* numbers(yield* cluster.instance())
        assert.deepStrictEqual(yield* a.get("k"), Option.none())
        yield* a.set("k", 1)
        yield* cluster.arrived
        assert.deepStrictEqual(yield* a.get("k"), Option.some(1))
        assert.deepStrictEqual(yield* b.get("k"), Option.some(1))
        yield* b.set("k", 2)
        yield* cluster.arrived
        assert.deepStrictEqual(yield* a.get("k"), Option.some(2))
      }))

    test("who sees a write sees all that came before it, and what was seen is not unseen", (cluster) =>
      Effect.gen(function* () {
        const a = yield* numbers(yield* cluster.instance())
        const b = yield* numbers(yield* cluster.instance())
        const c = yield* numbers(yield* cluster.instance())
        const writing = yield* start(
          Effect.gen(function* () {
            for (let i = 1; i <= 200; i++) {
              yield* a.set("first", i)
              yield* b.set("second", i)
            }
          })
        )
        const valueOf = (key: string) =>
          Effect.map(
            c.get(key),
            Option.getOrElse(() => 0)
          )
        let seen = 0
        while (seen < 200) {
          const second = yield* valueOf("second")
          assert.isAtLeast(second, seen)
          assert.isAtLeast(yield* valueOf("first"), second)
          seen = second
          yield* backend.advance("1 millis")
        }
        yield* Fiber.join(writing)
      }))

    test('0, false, "" and null are values, not misses', (cluster) =>
      Effect.gen(function* () {
        const cache = yield* (yield* cluster.instance()).run(Cache.make("falsy", Falsy))
        for (const [i, value] of falsy.entries()) {
          yield* cache.set(`set${i}`, value)
          assert.strictEqual(yield* cache.wrap(`wrap${i}`, Effect.succeed(value)), value)
          for (const key of [`set${i}`, `wrap${i}`]) {
            const load = counted("loaded")
            assert.deepStrictEqual(yield* cache.get(key), Option.some(value))
            assert.deepStrictEqual(yield* cache.mget([key]), [Option.some(value)])
            assert.isTrue(yield* cache.has(key))
            assert.strictEqual(yield* cache.wrap(key, load.effect), value)
            assert.strictEqual(yield* cache.wrapWithCondition(key, load.effect), value)
            assert.strictEqual(load.runs, 0)
            assert.isTrue(yield* cache.del(key))
          }
        }
      }))

    test("values come back as their Schema's type", (cluster) =>
      Effect.gen(function* () {
        const Rich = Schema.Struct({
          at: Schema.Date,
          big: Schema.BigInt,
          maybe: Schema.Option(Schema.Number),
          tags: Schema.ReadonlySet(Schema.String),
          left: Schema.optional(Schema.Number),
          nothing: Schema.UndefinedOr(Schema.String)
        })
        const a = yield* (yield* cluster.instance()).run(Cache.make("rich", Rich))
        const b = yield* (yield* cluster.instance()).run(Cache.make("rich", Rich))
        const value = {
          at: new Date(86_400_000),
          big: 2n ** 70n,
          maybe: Option.some(0),
          tags: new Set(["x"]),
          nothing: undefined
        }
        yield* a.set("k", value)
        yield* cluster.arrived
        for (const cache of [a, b, a]) assert.deepStrictEqual(yield* cache.get("k"), Option.some(value))
      }))

    test("a stored payload that no longer decodes is a miss, logged and counted", (cluster, logs) =>
      Effect.gen(function* () {
        const instance = yield* cluster.instance()
        const before = yield* instance.run(Cache.make("c", Schema.String))
        const after = yield* instance.run(Cache.make("c", Schema.Struct({ n: Schema.Number })))
        yield* before.mset([
          ["old", "text"],
          ["older", "text"]
        ])
        yield* after.set("new", { n: 1 })
        const undecodable = yield* counting(Metrics.cacheUndecodable)

        assert.deepStrictEqual(yield* after.get("old"), Option.none())
        assert.strictEqual(yield* undecodable, 1)
        const logged = warnings(logs, "decode")
        assert.lengthOf(logged, 1)
        assert.deepInclude(logged[0]!.annotations, { cache: "c", key: "old" })

        const values = yield* after.mget(["old", "new", "older"])
        assert.deepStrictEqual(values, [Option.none(), Option.some({ n: 1 }), Option.none()])
        assert.strictEqual(yield* undecodable, 3)

        assert.deepStrictEqual(yield* after.wrap("old", Effect.succeed({ n: 2 })), { n: 2 })
        assert.deepStrictEqual(yield* after.get("old"), Option.some({ n: 2 }))
      }))

    test("so is one whose Schema throws", (cluster, logs) =>
      Effect.gen(function* () {
        const instance = yield* cluster.instance()
        const texts = yield* instance.run(Cache.make("c", Schema.String))
        const decode = (text: string): string => new URL(text).href
        const urls = yield* instance.run(
          Cache.make(
            "c",
            Schema.String.pipe(
              Schema.decodeTo(Schema.String, SchemaTransformation.transform({ decode, encode: (href) => href }))
            )
          )
        )
        yield* texts.set("old", "no url")
        const undecodable = yield* counting(Metrics.cacheUndecodable)
        assert.deepStrictEqual(yield* urls.get("old"), Option.none())
        assert.strictEqual(yield* undecodable, 1)
        assert.lengthOf(warnings(logs, "decode"), 1)
        assert.strictEqual(yield* urls.wrap("old", Effect.succeed("http://new/")), "http://new/")
      }))

    test("mutating a returned or a stored value never changes the cache", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const Nested = Schema.Struct({ list: Schema.Array(Schema.Struct({ n: Schema.Number })) })
        const schemas: ReadonlyArray<Schema.Codec<unknown, unknown>> = [
          Nested,
          Schema.Record(Schema.String, Schema.Array(Schema.Struct({ n: Schema.Number }))),
          Schema.Struct({ list: Schema.Unknown }),
          Schema.Struct({ list: Schema.optional(Schema.Any) }),
          Schema.Union([Schema.Number, Nested]),
          Schema.Unknown,
          Schema.Any
        ]
        const fresh = () => ({ list: [{ n: 1 }, { n: 2 }] })
        const scribble = (value: unknown) => {
          const { list } = value as ReturnType<typeof fresh>
          list[0]!.n = 99
          list.push({ n: 3 })
          Object.assign(value as object, { more: true })
        }
        for (const [i, schema] of schemas.entries()) {
          const here = yield* a.run(Cache.make(`c${i}`, schema))
          const there = yield* b.run(Cache.make(`c${i}`, schema))
          const unchanged = Effect.gen(function* () {
            for (const key of ["set", "mset", "wrap"]) {
              for (const cache of [here, there]) {
                assert.deepStrictEqual(yield* cache.get(key), Option.some(fresh()), `${key} with schema ${i}`)
              }
            }
          })
          const stored = [fresh(), fresh(), fresh()] as const
          yield* here.set("set", stored[0])
          yield* here.mset([["mset", stored[1]]])
          const loaded = yield* here.wrap("wrap", Effect.succeed(stored[2]))
          yield* cluster.arrived
          for (const value of [...stored, loaded]) scribble(value)
          yield* unchanged
          for (const cache of [here, there]) {
            for (let round = 0; round < 3; round++) {
              scribble(Option.getOrThrow(yield* cache.get("set")))
              scribble(yield* cache.wrap("wrap", Effect.die("a hit does not load")))
              const twice = yield* cache.mget(["mset", "mset"])
              scribble(Option.getOrThrow(twice[0]!))
              assert.deepStrictEqual(twice[1], Option.some(fresh()))
              yield* unchanged
            }
          }
        }
      }))

    test("mutating a Date, a Map or a Set that was returned never changes the cache", (cluster) =>
      Effect.gen(function* () {
        const Rich = Schema.Struct({
          at: Schema.Date,
          map: Schema.ReadonlyMap(Schema.String, Schema.Number),
          set: Schema.ReadonlySet(Schema.Number)
        })
        const cache = yield* (yield* cluster.instance()).run(Cache.make("c", Rich))
        const fresh = () => ({ at: new Date(5), map: new Map([["a", 1]]), set: new Set([1]) })
        const scribble = ({ at, map, set }: typeof Rich.Type) => {
          at.setTime(9)
          ;(map as Map<string, number>).set("b", 2)
          ;(set as Set<number>).clear()
        }
        const stored = fresh()
        yield* cache.set("k", stored)
        scribble(stored)
        for (let i = 0; i < 3; i++) {
          const value = Option.getOrThrow(yield* cache.get("k"))
          assert.deepStrictEqual(value, fresh())
          scribble(value)
        }
      }))
  })

  describe("bad input is refused before anything is written", () => {
    test('a key "" (or no text at all, or beyond all bounds)', (cluster) =>
      Effect.gen(function* () {
        const cache = yield* numbers(yield* cluster.instance())
        const load = counted(1)
        for (const key of ["", 7 as unknown as string, undefined as unknown as string, "x".repeat(100_000)]) {
          yield* refused(cache.get(key), "key")
          yield* refused(cache.set(key, 1), "key")
          yield* refused(cache.del(key), "key")
          yield* refused(cache.has(key), "key")
          yield* refused(cache.ttl(key), "key")
          yield* refused(cache.mget(["good", key]), "key")
          yield* refused(
            cache.mset([
              ["good", 1],
              [key, 1]
            ]),
            "key"
          )
          yield* refused(cache.mdel(["good", key]), "key")
          yield* refused(cache.wrap(key, load.effect), "key")
          yield* refused(cache.wrapWithCondition(key, load.effect, { useCache: false }), "key")
        }
        assert.strictEqual(load.runs, 0)
        assert.deepStrictEqual(yield* cache.keys(), [])
      }))

    test('a name or prefix ""', (cluster) =>
      Effect.gen(function* () {
        const instance = yield* cluster.instance()
        yield* refused(instance.run(Cache.make("", Schema.Number)), "name")
        yield* refused(instance.run(Cache.make("x".repeat(10_000), Schema.Number)), "name")
        yield* refused(instance.run(Cache.make("c", Schema.Number, { prefix: "" })), "prefix")
      }))

    for (const [name, ttl] of badTtls) {
      test(`a ttl of ${name}`, (cluster) =>
        Effect.gen(function* () {
          const instance = yield* cluster.instance()
          const cache = yield* numbers(instance)
          const load = counted(1)
          yield* refused(numbers(instance, { ttl }), "ttl")
          yield* refused(cache.set("k", 1, { ttl }), "ttl")
          yield* refused(cache.mset([["k", 1]], { ttl }), "ttl")
          yield* refused(cache.wrap("k", load.effect, { ttl }), "ttl")
          yield* refused(instance.run(cache.wrap("k", load.effect, { ttl, exclusive: true })), "ttl")
          yield* refused(cache.wrapWithCondition("k", load.effect, { ttl }), "ttl")
          yield* refused(cache.wrapWithCondition("k", load.effect, { ttl, useCache: false }), "ttl")
          assert.strictEqual(load.runs, 0)
          assert.isFalse(yield* cache.has("k"))
        }))
    }

    test("a value that the Schema refuses; what was there stays", (cluster) =>
      Effect.gen(function* () {
        const Even = Schema.Number.check(Schema.makeFilter((n) => n % 2 === 0))
        const cache = yield* (yield* cluster.instance()).run(Cache.make("even", Even))
        yield* cache.set("k", 2)
        yield* refused(cache.set("k", 3), "value")
        yield* refused(cache.set("k", "4" as unknown as number), "value")
        yield* refused(
          cache.mset([
            ["k", 4],
            ["other", 5],
            ["third", 6]
          ]),
          "value"
        )
        yield* refused(cache.wrap("loaded", Effect.succeed(7)), "value")
        yield* refused(cache.wrapWithCondition("loaded", Effect.succeed(7)), "value")
        assert.deepStrictEqual(yield* cache.get("k"), Option.some(2))
        assert.deepStrictEqual(yield* cache.keys(), ["k"])
      }))

    test("a value without a JSON form, where the Schema does not say", (cluster) =>
      Effect.gen(function* () {
        const cache = yield* (yield* cluster.instance()).run(Cache.make("any", Schema.Unknown))
        const circular: Record<string, unknown> = {}
        circular.self = circular
        for (const value of [undefined, 5n, () => 1, Symbol("s"), new Map([[1, 2]]), { deep: [5n] }, circular]) {
          yield* refused(cache.set("k", value), "value")
        }
        assert.deepStrictEqual(yield* cache.keys(), [])
      }))
  })
}
