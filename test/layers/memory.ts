/** The memory backend, for the contract suites: one hub per test, on `TestClock`. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import { Cohort, Instance } from "../../src/index.ts"
import { MemoryHub } from "../../src/layers/memory/index.ts"
import { allFeatures, type Backend } from "../../src/testing/contracts/Backend.ts"

/** The memory backend, with the layers that make an instance. */
export const memoryWith = (
  name: string,
  layer: (
    options: Instance.Options & { readonly hub: MemoryHub.MemoryHub["Service"] }
  ) => Layer.Layer<Cohort.Services, unknown>
): Backend => ({
  name,
  features: allFeatures,
  advance: (duration) => TestClock.adjust(duration),
  make: Effect.gen(function* () {
    const hub = yield* MemoryHub.make
    let count = 0
    return {
      instance: (options) =>
        Effect.gen(function* () {
          const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
          const context = yield* Layer.buildWithScope(
            layer({ app: "test", id: `instance-${count++}`, ...options, hub }),
            scope
          ).pipe(Effect.orDie)
          const { id } = yield* Effect.provide(Instance.Instance, context)
          return {
            id,
            context,
            run: Effect.provide(context),
            close: Scope.close(scope, Exit.void),
            disconnect: hub.disconnect(id),
            reconnect: hub.reconnect(id)
          }
        })
    }
  })
})

export const memory = memoryWith("memory", Cohort.layerMemory)
