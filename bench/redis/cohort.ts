/** An instance on Redis, as an application has it. */
import type * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as ManagedRuntime from "effect/ManagedRuntime"
import { Cache, EventQueue, Instance, Lock, PubSub } from "../../src/index.ts"
import { layerStores, RedisConnection } from "../../src/layers/redis/index.ts"
import { timed } from "../bench.ts"

export { inFlight } from "../inFlight.ts"

export const makeRuntime = (options: { readonly app?: string } = {}) =>
  ManagedRuntime.make(
    Layer.mergeAll(Cache.layer, EventQueue.layer, Lock.layer, PubSub.layer).pipe(
      Layer.provide(layerStores),
      Layer.provide(RedisConnection.layer({ url: process.env.REDIS_URL! })),
      Layer.provideMerge(Instance.layer({ app: options.app ?? "bench" })),
      // The result is what is written to the standard output.
      Layer.provide(Logger.layer([]))
    )
  )

type Runtime = ReturnType<typeof makeRuntime>
export type Services = Cache.Cache | EventQueue.EventQueue | Lock.Lock | PubSub.PubSub | Instance.Instance

/** Times an effect on the instance. */
export const timedOn =
  (runtime: Runtime) =>
  (effect: Effect.Effect<unknown, unknown, Services>): Promise<number> =>
    timed(() => runtime.runPromise(effect))
