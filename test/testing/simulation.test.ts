/** Simulations of the memory layers of every primitive, and of the plugins. */
import { describe, it } from "@effect/vitest"
import { Simulation } from "../../src/testing/index.ts"
import { plugins } from "./plugins.ts"
import { broadcasts, caches, locks, members, nearCaches, queues, syncs } from "./primitives.ts"

/** Always the same ones, and some that nobody has seen: a failure tells which, to be added here. */
const seeds = [1, 2, 3, ...Array.from({ length: 2 }, () => Math.floor(Math.random() * 1e9))]
/** All that a network may do to messages. */
const lossy = [...Simulation.faults, "loss", "duplication", "reordering"] as const

describe("simulated on the memory layers", () => {
  for (const seed of seeds) {
    const steps = 200
    const instances = 3 + (seed % 3)
    describe(`seed ${seed}`, () => {
      it.effect("locks", () => Simulation.run({ ...locks, seed, steps, instances }))
      it.effect("queues", () => Simulation.run({ ...queues, seed, steps, instances }))
      it.effect("caches", () => Simulation.run({ ...caches, seed, steps, instances }))
      it.effect("near caches", () => Simulation.run({ ...nearCaches, seed, steps, instances }))
      it.effect("broadcasts", () => Simulation.run({ ...broadcasts, seed, steps, instances }))
      it.effect("sync messages", () => Simulation.run({ ...syncs, seed, steps, instances, faults: lossy }))
      it.effect("members and singletons", () => Simulation.run({ ...members, seed, steps, instances }))
      it.effect("the three plugins", () => Simulation.run({ ...plugins, seed, steps, instances }))
    })
  }
})
