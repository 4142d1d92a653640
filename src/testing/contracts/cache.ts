/** The contract of `Cache` (design §4.1), for every backend. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import type * as Scope from "effect/Scope"
import { Cache, Lock, Metrics } from "../../index.ts"
import type { Backend, TestBackend, TestInstance } from "./Backend.ts"
import { counting, describeOn, eventually, type LogEntry, support } from "./support.ts"

interface Cluster extends TestBackend {
  /** Waits until its instances read what was written before; no time at all where reads follow writes. */
  readonly arrived: Effect.Effect<void>
}

const numbers = (instance: TestInstance, options?: Cache.Options) =>
  instance.run(Cache.make("numbers", Schema.Number, options))

/** Asserts that an operation fails with `InvalidInput` for the field. */
const refused = <A, E, R>(operation: Effect.Effect<A, E, R>, field: string) =>
  Effect.map(Effect.flip(operation), (error) => {
    assert.instanceOf(error, Cache.CacheError)
    assert.strictEqual(error.reason._tag === "InvalidInput" && error.reason.field, field)
    assert.include(error.message, field)
  })

const unavailable = <A, E, R>(operation: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(operation), (error) => {
    assert.instanceOf(error, Cache.CacheError)
    assert.strictEqual(error.reason._tag, "Unavailable")
    assert.include(error.message, "unavailable")
  })

/** A load that counts its runs. */
const counted = <A>(value: A) => {
  const load = {
    runs: 0,
    effect: Effect.sync(() => {
      load.runs++
      return value
    })
  }
  return load
}

/** A load that says when it runs and whether it was stopped, and waits for the test to end it. */
const gated = <A, E = never>() =>
  Effect.gen(function* () {
    const gate = yield* Deferred.make<A, E>()
    const started = yield* Deferred.make<void>()
    const load = {
      runs: 0,
      stopped: 0,
      started: Deferred.await(started),
      open: (exit: Exit.Exit<A, E>) => Deferred.done(gate, exit),
      effect: Effect.suspend(() => {
        load.runs++
        return Effect.andThen(Deferred.succeed(started, undefined), Deferred.await(gate))
      }).pipe(
        Effect.onInterrupt(() =>
          Effect.sync(() => {
            load.stopped++
          })
        )
      )
    }
    return load
  })

/** Starts a caller, and gives it the turn. */
const start = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

const warnings = (logs: ReadonlyArray<LogEntry>, about: string) =>
  logs.filter((log) => log.level === "WARN" && JSON.stringify(log.message).includes(about))

const falsy = [0, false, "", null] as const
const Falsy = Schema.Union([Schema.Number, Schema.Boolean, Schema.String, Schema.Null])

/** Keys that a backend's own syntax could trip over. */
const oddKeys = [
  "*",
  "**",
  "?",
  ":",
  "a:b",
  "a%3Ab",
  "a:",
  ":a",
  "[",
  "[a-z]",
  "]",
  "{tag}",
  "%",
  "%s",
  "\\",
  "\\*",
  " ",
  "\n",
  "é🎉",
  "\ud800",
  "\udc00",
  "\ufffd",
  "\u0001%d800",
  "__proto__",
  "constructor",
  "x".repeat(10_240)
]

const badTtls: ReadonlyArray<readonly [string, Duration.Input]> = [
  ["0", 0],
  ["-1", -1],
  ["NaN", Number.NaN],
  ["-Infinity", Number.NEGATIVE_INFINITY],
  ["text", "soon" as "1 second"]
]

export const suite = (backend: Backend): void => {
  const { scenario: scenarioOn, within } = support(backend)
  const { settle } = backend
  const { readsFollowWrites } = backend.features

  const following = (cluster: TestBackend): Cluster => {
    const instances: Array<TestInstance> = []
    let count = 0
    const cacheOn = ({ run }: TestInstance) => run(Cache.make("arrivals", Schema.Number))
    // Writes are seen in one order: who sees the last one has seen all.
    const arrived = Effect.gen(function* () {
      const n = ++count
      yield* (yield* cacheOn(instances[0]!)).set("n", n)
      for (const instance of instances) {
        const cache = yield* cacheOn(instance)
        const isThere = Effect.map(cache.get("n"), (found) => Option.isSome(found) && found.value >= n)
        yield* eventually(backend, isThere, "what was written is read", { step: "1 millis", steps: 10_000 })
      }
    })
    return {
      instance: (options) => Effect.tap(cluster.instance(options), (made) => Effect.sync(() => instances.push(made))),
      arrived: readsFollowWrites ? Effect.void : Effect.orDie(arrived)
    }
  }

  const scenario = <A, E>(body: (cluster: Cluster, logs: Array<LogEntry>) => Effect.Effect<A, E, Scope.Scope>) =>
    scenarioOn((cluster, logs) => Effect.suspend(() => body(following(cluster), logs)))

  const test = <A, E>(
    name: string,
    body: (cluster: Cluster, logs: Array<LogEntry>) => Effect.Effect<A, E, Scope.Scope>
  ): void => it.effect(name, () => scenario(body))

  describeOn(backend, "Cache", () => {
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

    describe("ttl", () => {
      test("an entry that has expired is as good as none", (cluster) =>
        Effect.gen(function* () {
          const a = yield* numbers(yield* cluster.instance())
          const b = yield* numbers(yield* cluster.instance())
          yield* a.set("short", 1, { ttl: "500 millis" })
          yield* a.mset([["shorter", 1]], { ttl: "400 millis" })
          yield* a.wrap("loaded", Effect.succeed(1), { ttl: "500 millis" })
          yield* a.wrapWithCondition("asked", Effect.succeed(1), { ttl: "500 millis" })
          yield* a.set("long", 1, { ttl: "10 seconds" })
          yield* a.set("forever", 1)
          yield* cluster.arrived
          const short = ["short", "shorter", "loaded", "asked"]
          yield* backend.advance("200 millis")
          for (const key of short) assert.deepStrictEqual(yield* b.get(key), Option.some(1), key)
          yield* backend.advance("500 millis")
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

    it.effect.prop(
      "two instances and a model agree on every answer, as time passes",
      { steps: Schema.Array(Step).check(Schema.isMaxLength(40)) },
      ({ steps }) =>
        scenario((cluster) =>
          Effect.gen(function* () {
            const caches = [
              yield* (yield* cluster.instance()).run(Cache.make("model", Schema.NullOr(Schema.Number))),
              yield* (yield* cluster.instance()).run(Cache.make("model", Schema.NullOr(Schema.Number)))
            ]
            const model = new Model()
            const begin = yield* Clock.currentTimeMillis
            for (const step of steps) {
              if (step.op === "advance") {
                model.now++
                // What the steps take does not add up over the ticks.
                const passed = (yield* Clock.currentTimeMillis) - begin
                yield* backend.advance(Math.max(model.now * tick - passed, 0))
              } else {
                const actual = yield* perform(caches[step.on]!, step)
                yield* cluster.arrived
                // A machine that is this slow cannot tell when entries end.
                if ((yield* Clock.currentTimeMillis) - begin > (model.now + 0.4) * tick) return
                assert.deepStrictEqual(actual, model.perform(step), JSON.stringify(step))
              }
            }
          })
        ),
      { timeout: 120_000, arbitrary: { runs: 100, size: 40, concurrency: backend.virtual ? 1 : 5 } }
    )
  })
}

/** Time passes in ticks; ttls end between two of them, so that no answer depends on how fast the backend is. */
const tick = 400
const ttlOf = (ticks: number | null): Cache.SetOptions => (ticks === null ? {} : { ttl: (ticks - 0.5) * tick })

const On = Schema.Literals([0, 1])
const Key = Schema.Literals(["a", "b", "c", "a*", "a:b", "["])
const Value = Schema.NullOr(Schema.Literals([0, 1, 2]))
const Ttl = Schema.NullOr(Schema.Literals([1, 2, 3]))
const Entries = Schema.Array(Schema.Struct({ key: Key, value: Value })).check(Schema.isMaxLength(4))
const Keys = Schema.Array(Key).check(Schema.isMaxLength(5))

const Step = Schema.Union([
  Schema.Struct({ op: Schema.Literal("get"), on: On, key: Key }),
  Schema.Struct({ op: Schema.Literal("set"), on: On, key: Key, value: Value, ttl: Ttl }),
  Schema.Struct({ op: Schema.Literal("del"), on: On, key: Key }),
  Schema.Struct({ op: Schema.Literal("has"), on: On, key: Key }),
  Schema.Struct({ op: Schema.Literal("reset"), on: On }),
  Schema.Struct({ op: Schema.Literal("keys"), on: On }),
  Schema.Struct({ op: Schema.Literal("keys a*"), on: On }),
  Schema.Struct({ op: Schema.Literal("lasts"), on: On, key: Key }),
  Schema.Struct({ op: Schema.Literal("mget"), on: On, keys: Keys }),
  Schema.Struct({ op: Schema.Literal("mset"), on: On, entries: Entries, ttl: Ttl }),
  Schema.Struct({ op: Schema.Literal("mdel"), on: On, keys: Keys }),
  Schema.Struct({ op: Schema.Literal("wrap"), on: On, key: Key, value: Value, ttl: Ttl }),
  Schema.Struct({ op: Schema.Literal("wrap that fails"), on: On, key: Key }),
  Schema.Struct({ op: Schema.Literal("wrap with a set inside"), on: On, key: Key, value: Value }),
  Schema.Struct({ op: Schema.Literal("wrap if not null"), on: On, key: Key, value: Value, ttl: Ttl }),
  Schema.Struct({ op: Schema.Literal("advance") })
])
type Step = Exclude<typeof Step.Type, { readonly op: "advance" }>

type Cached = Cache.NamedCache<number | null>

const perform = (cache: Cached, step: Step): Effect.Effect<unknown, Cache.CacheError> => {
  switch (step.op) {
    case "get":
      return cache.get(step.key)
    case "set":
      return cache.set(step.key, step.value, ttlOf(step.ttl))
    case "del":
      return cache.del(step.key)
    case "has":
      return cache.has(step.key)
    case "reset":
      return cache.reset
    case "keys":
      return Effect.map(cache.keys(), (keys) => keys.sort())
    case "keys a*":
      return Effect.map(cache.keys("a*"), (keys) => keys.sort())
    case "lasts":
      return Effect.map(cache.ttl(step.key), Option.map(Duration.isFinite))
    case "mget":
      return cache.mget(step.keys)
    case "mset":
      return cache.mset(
        step.entries.map(({ key, value }) => [key, value] as const),
        ttlOf(step.ttl)
      )
    case "mdel":
      return cache.mdel(step.keys)
    case "wrap":
      return cache.wrap(step.key, Effect.succeed(step.value), ttlOf(step.ttl))
    case "wrap that fails":
      return Effect.catch(cache.wrap(step.key, Effect.fail("no")), Effect.succeed)
    case "wrap with a set inside":
      return cache.wrap(step.key, Effect.as(cache.set(step.key, step.value), 7))
    case "wrap if not null":
      return cache.wrapWithCondition(step.key, Effect.succeed(step.value), {
        ...ttlOf(step.ttl),
        isCacheable: (value) => value !== null
      })
  }
}

/** What a cache is: a map whose entries end. */
class Model {
  now = 0
  private readonly entries = new Map<string, { readonly value: number | null; readonly ends: number }>()

  private entry(key: string) {
    const entry = this.entries.get(key)
    return entry !== undefined && entry.ends > this.now ? entry : undefined
  }

  private get(key: string) {
    return Option.map(Option.fromUndefinedOr(this.entry(key)), ({ value }) => value)
  }

  private set(key: string, value: number | null, ttl: number | null) {
    this.entries.set(key, { value, ends: ttl === null ? Number.POSITIVE_INFINITY : this.now + ttl })
  }

  private del(key: string) {
    const there = this.entry(key) !== undefined
    this.entries.delete(key)
    return there
  }

  private keys() {
    return [...this.entries.keys()].filter((key) => this.entry(key) !== undefined).sort()
  }

  perform(step: Step): unknown {
    switch (step.op) {
      case "get":
        return this.get(step.key)
      case "set":
        return this.set(step.key, step.value, step.ttl)
      case "del":
        return this.del(step.key)
      case "has":
        return this.entry(step.key) !== undefined
      case "reset":
        return this.entries.clear()
      case "keys":
        return this.keys()
      case "keys a*":
        return this.keys().filter((key) => key.startsWith("a"))
      case "lasts":
        return Option.map(Option.fromUndefinedOr(this.entry(step.key)), ({ ends }) => Number.isFinite(ends))
      case "mget":
        return step.keys.map((key) => this.get(key))
      case "mset":
        for (const { key, value } of step.entries) this.set(key, value, step.ttl)
        return undefined
      case "mdel":
        return step.keys.filter((key) => this.del(key)).length
      default: {
        const hit = this.entry(step.key)
        if (hit !== undefined) return hit.value
        if (step.op === "wrap that fails") return "no"
        if (step.op === "wrap with a set inside") {
          this.set(step.key, step.value, null)
          return 7
        }
        if (step.op === "wrap" || step.value !== null) this.set(step.key, step.value, step.ttl)
        return step.value
      }
    }
  }
}
