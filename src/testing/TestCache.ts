/**
 * `Cache` for small tests. See `TestStores` for what the test layers have in common. Exclusive loads require `Lock` as
 * well: `TestLock.layerTest`.
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Schema from "effect/Schema"
import * as MemoryCacheStore from "../layers/memory/MemoryCacheStore.ts"
import * as Cache from "../services/Cache.ts"
import type * as Instance from "../services/Instance.ts"
import { Payload, wire } from "../services/Payload.ts"
import * as TestStores from "./TestStores.ts"

/**
 * Provides `Cache`.
 *
 * @since 0.2.0
 */
export const layerTest: Layer.Layer<Cache.Cache | TestStores.TestStores | Instance.Instance> = Layer.provideMerge(
  Cache.layer,
  TestStores.layer
)

/**
 * An entry that is live.
 *
 * @since 0.2.0
 */
export interface Entry<A> {
  readonly key: string
  readonly value: A
  /** Milliseconds; `Infinity` without a ttl. */
  readonly expiresIn: number
}

/**
 * What a cache (by its name, or its `prefix` if it has one) holds now. Fails when a value does not decode.
 *
 * @since 0.2.0
 */
export const entries = <S extends Schema.Constraint>(
  name: string,
  schema: S
): Effect.Effect<ReadonlyArray<Entry<S["Type"]>>, Schema.SchemaError, TestStores.TestStores | S["DecodingServices"]> =>
  TestStores.TestStores.use(({ hub }) => {
    const address = TestStores.address("cache", name)
    const codec = wire(schema)
    return Effect.forEach(
      MemoryCacheStore.inspect(hub).filter(({ space }) => space === address),
      ({ expiresIn, key, value }) =>
        Effect.map(codec.decode(Payload.fromTree(value)), (value) => ({ key, value, expiresIn }))
    )
  })

/**
 * Makes operations fail with `Unavailable`; `on` is the name of a cache. `wrap` reads with `get`, and writes with
 * `reserve` and `fill`.
 *
 * @since 0.2.0
 */
export const fail = (
  operation: "get" | "getMany" | "set" | "del" | "reset" | "keys" | "ttl" | "reserve" | "fill" | "abandon" | "any",
  options?: TestStores.FailOptions
): Effect.Effect<void, never, TestStores.TestStores> => TestStores.fail("cache", operation, options)

/**
 * Ends what {@link fail} began.
 *
 * @since 0.2.0
 */
export const recover: Effect.Effect<void, never, TestStores.TestStores> = TestStores.recover("cache")
