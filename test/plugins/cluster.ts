/** Instances that run plugins: one hub and one set of stores for a test, services and a host for each. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import { Cohort, type PluginHost } from "../../src/index.ts"
import { MemoryHub } from "../../src/layers/memory/index.ts"

/** One instance, alive as long as the test's scope. */
interface App<S> {
  readonly id: string
  /** Runs an effect on this instance. */
  readonly on: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, Exclude<R, S>>
  /** Stops the instance before the test ends, as a clean stop would. */
  readonly close: Effect.Effect<void>
  readonly disconnect: Effect.Effect<void>
  readonly reconnect: Effect.Effect<void>
}

/**
 * Starts instances of an app: `stores` is built once and shared, `services` and
 * the host with its plugins are built for each.
 */
export const makeCluster = <S, E, Stores, E2, RP>(options: {
  readonly stores: Layer.Layer<Stores, E2>
  readonly services: Layer.Layer<S, E, Stores | Cohort.Services>
  readonly host: Layer.Layer<PluginHost.PluginHost, PluginHost.PluginError, RP>
}) =>
  Effect.gen(function* () {
    type All = S | Stores | Cohort.Services | PluginHost.PluginHost
    const hub = yield* MemoryHub.make
    const stores = yield* Effect.orDie(Layer.build(options.stores))

    const start = (id: string, worker: Context.Context<never> = Context.empty(), workerMode = "") =>
      Effect.gen(function* () {
        const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => passingTime(Scope.close(scope, Exit.void)))
        const layer = options.host.pipe(
          Layer.provideMerge(options.services),
          Layer.provideMerge(Cohort.layerMemory({ app: "test", id, hub, workerMode })),
          Layer.provideMerge(Layer.succeedContext(Context.merge(stores, worker)))
        ) as Layer.Layer<All, E | PluginHost.PluginError>
        const context = yield* Effect.orDie(Layer.buildWithScope(Layer.fresh(layer), scope))
        const app: App<All> = {
          id,
          on: Effect.provide(context),
          close: passingTime(Scope.close(scope, Exit.void)),
          disconnect: hub.disconnect(id),
          reconnect: hub.reconnect(id)
        }
        return app
      })

    return { hub, stores, start }
  })

/** Runs what may wait for time to pass, such as a drain, and lets it pass until it has ended. */
export const passingTime = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.gen(function* () {
    const fiber = yield* Effect.forkChild(effect)
    while (fiber.pollUnsafe() === undefined) yield* TestClock.adjust("1 second")
    return yield* Fiber.join(fiber)
  })

/** Lets virtual time pass in small steps until a condition holds; fails when it never does. */
export const eventually = <E, R>(condition: Effect.Effect<boolean, E, R>, what: string): Effect.Effect<void, E, R> =>
  Effect.gen(function* () {
    for (let i = 0; i < 400; i++) {
      if (yield* condition) return
      // Files are read, and CSV is parsed, in real time.
      if (i % 10 === 9) yield* TestClock.withLive(Effect.sleep(1))
      yield* TestClock.adjust("50 millis")
    }
    return yield* Effect.die(new Error(`never happened: ${what}`))
  })
