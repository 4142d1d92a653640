/** Simulations of the memory layers of every primitive. */
import { describe, it } from "@effect/vitest"
import { Simulation } from "../../src/testing/index.ts"
import { broadcasts, caches, locks, queues, syncs } from "./primitives.ts"

const seeds = [1, 2, 3]

describe("simulated on the memory layers", () => {
  for (const seed of seeds) {
    it.effect(`locks, seed ${seed}`, () => Simulation.run({ ...locks, seed, steps: 200 }))
    it.effect(`queues, seed ${seed}`, () => Simulation.run({ ...queues, seed, steps: 200 }))
    it.effect(`caches, seed ${seed}`, () => Simulation.run({ ...caches, seed, steps: 200 }))
    it.effect(`broadcasts, seed ${seed}`, () => Simulation.run({ ...broadcasts, seed, steps: 200 }))
    it.effect(`sync messages, seed ${seed}`, () => Simulation.run({ ...syncs, seed, steps: 200 }))
  }
})
