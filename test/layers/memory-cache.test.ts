import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import { Cache, Cohort } from "../../src/index.ts"
import { MemoryHub } from "../../src/layers/memory/index.ts"
import { suite } from "../../src/testing/contracts/cache.ts"
import { memory } from "./memory.ts"

suite(memory)

interface Spaces
  extends ReadonlyMap<
    string,
    {
      readonly entries: { readonly entries: ReadonlyMap<string, unknown> }
      readonly reservations: ReadonlyMap<string, unknown>
    }
  > {}

describe("Cache on memory, seen from inside", () => {
  const inside = Effect.gen(function* () {
    const hub = yield* MemoryHub.make
    const instance = yield* Layer.build(Cohort.layerMemory({ hub }))
    const cache = yield* Effect.provide(Cache.make("c", Schema.Number), instance)
    const spaces = hub.part("cache", (): Spaces => assert.fail())
    return { cache, space: () => [...spaces.values()][0]! }
  })

  it.effect("loads leave nothing behind but what they store", () =>
    Effect.gen(function* () {
      const { cache, space } = yield* inside
      for (let i = 0; i < 1_000; i++) {
        yield* Effect.ignore(cache.wrap(`failed ${i}`, Effect.fail("no")))
        yield* cache.wrapWithCondition(`refused ${i}`, Effect.succeed(1), { isCacheable: () => false })
        yield* cache.wrap(`deleted ${i}`, Effect.as(cache.del(`deleted ${i}`), 1))
        yield* cache.wrap(`stored ${i}`, Effect.succeed(1))
        const stopped = yield* Effect.forkChild(cache.wrap(`stopped ${i}`, Effect.never), { startImmediately: true })
        yield* Fiber.interrupt(stopped)
      }
      assert.strictEqual(space().reservations.size, 0)
      assert.strictEqual(space().entries.entries.size, 1_000)
    })
  )

  it.effect("what has expired does not pile up while the cache is written to", () =>
    Effect.gen(function* () {
      const { cache, space } = yield* inside
      for (let i = 0; i < 10_000; i++) {
        yield* cache.set(`key ${i}`, i, { ttl: "1 second" })
        if (i % 100 === 99) yield* TestClock.adjust("1 second")
      }
      assert.isAtMost(space().entries.entries.size, 500)
    })
  )
})
