/** An instance on the memory layers, as an application has it: `Cohort.layerMemory` and nothing else. */
import type * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"
import { Cohort } from "../../src/index.ts"
import { timed } from "../bench.ts"

export const makeRuntime = () => ManagedRuntime.make(Cohort.layerMemory({ app: "bench" }))

type Runtime = ReturnType<typeof makeRuntime>

/** Times an effect on the instance, in one fiber. */
export const timedOn =
  (runtime: Runtime) =>
  (effect: Effect.Effect<unknown, unknown, Cohort.Services>): Promise<number> =>
    timed(() => runtime.runPromise(effect))
