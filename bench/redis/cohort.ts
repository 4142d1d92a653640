/** An instance on Redis, as an application has it. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as ManagedRuntime from "effect/ManagedRuntime"
import { Cache, EventQueue, Instance, Lock, PubSub } from "../../src/index.ts"
import { layerStores, RedisConnection } from "../../src/layers/redis/index.ts"
import { timed } from "../bench.ts"

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

/** `n` operations of fibers, each in a loop. */
export const inFlight = <E, R>(
  n: number,
  fibers: number,
  operation: (i: number) => Effect.Effect<unknown, E, R>
): Effect.Effect<void, E, R> =>
  fibers === 1
    ? loop(0, n, 1, operation)
    : Effect.forEach(Array.from({ length: fibers }), (_, fiber) => loop(fiber, n, fibers, operation), {
        concurrency: "unbounded",
        discard: true
      })

const loop = <E, R>(from: number, to: number, step: number, operation: (i: number) => Effect.Effect<unknown, E, R>) =>
  Effect.gen(function* () {
    for (let i = from; i < to; i += step) yield* operation(i)
  })
