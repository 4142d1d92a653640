/** Simulations of the locks and caches on RabbitMQ: their folds and their log, on a stream on virtual time. */
import { describe, it } from "@effect/vitest"
import { Invariant, Simulation } from "../../src/testing/index.ts"
import { caches, locks } from "./primitives.ts"
import { streamBackend } from "./SimulatedStream.ts"

const random = Array.from({ length: 2 }, () => Math.floor(Math.random() * 1e9))

describe("simulated on a stream", () => {
  for (const seed of [4, 17, 57, ...random]) {
    const instances = 3 + (seed % 3)
    it.effect(`locks, seed ${seed}`, () =>
      Simulation.run({ ...locks, seed, instances, steps: 150, backend: streamBackend() })
    )
    it.effect(`locks on a stream that forgets soon, seed ${seed}`, () =>
      Simulation.run({ ...locks, seed, instances, steps: 150, backend: streamBackend({ retained: 30_000 }) })
    )
    it.effect(`caches, seed ${seed}`, () => {
      const backend = streamBackend({ reads: "latest", retained: 60_000 })
      return Simulation.run({ ...caches, seed, instances, steps: 150, backend, invariants: [Invariant.oneHolder] })
    })
  }

  it.effect("a grant that was made while its instance was cut off is not counted from when it is heard of", () =>
    Simulation.run({
      ...{ ...locks, seed: 57, backend: streamBackend() },
      schedule: `
        +30.678s 1 runs increment #84183
        +0s 2 runs hold #75202
        +0s 0 runs increment #35889
        +0.26s 0 runs hold #93523
        +2.263s 2 is cut off for 4.423s
        +4.898s 1 runs nested #48968
      `
    })
  )
})
