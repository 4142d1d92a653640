/** Random histories against a model. */
import { assert, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Cache } from "../../../index.ts"
import type { Fixture } from "./fixture.ts"

export const tests = ({ backend, scenario }: Fixture): void => {
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
