/**
 * Prints the SHA-256 of the timelines of some simulations, as JSON. They are the same in every run on every Node:
 *
 *   node test/testing/timelines.ts
 *   npx -y node@22 test/testing/timelines.ts
 */
import { createHash } from "node:crypto"
import { pathToFileURL } from "node:url"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import { Lock, Uuid } from "../../src/index.ts"
import { Simulation } from "../../src/testing/index.ts"
import { plugins } from "./plugins.ts"
import { broadcasts, caches, locks, queues, syncs } from "./primitives.ts"

/** What depends on no more than Effect and the simulation: time, turns, chance, ids, promises and failures. */
const plain = Simulation.run({
  plugins: [],
  workload: {
    race: Effect.raceAll(
      [1, 2, 3].map((n) => Effect.delay(Effect.succeed(n), n * 10)).concat(Effect.promise(async () => 4))
    ),
    retry: Effect.retry(
      Effect.flatMap(Random.next, (x) => (x < 0.7 ? Effect.fail(new Error(`drew ${x}`)) : Effect.succeed(x))),
      Schedule.exponential("100 millis").pipe(Schedule.jittered, Schedule.upTo({ times: 3 }))
    ),
    ids: Effect.gen(function* () {
      const uuid = yield* Uuid.Generator
      const secure = yield* SecureRandom.SecureRandom
      yield* Effect.logWarning(`${uuid()} ${yield* secure.uuidV4()} ${yield* secure.intBetween(0, 1_000)}`)
    }),
    turns: Effect.forEach([3, 1, 2], (n) => Effect.andThen(Effect.yieldNow, Effect.logWarning(`turn ${n}`)), {
      concurrency: "unbounded"
    }),
    lock: Lock.runExclusive("one", Effect.sleep("700 millis"))
  },
  invariants: [],
  ...{ seed: 7, steps: 300 }
})

/** Lossy, too. */
const all = [...Simulation.faults, "loss", "duplication", "reordering"] as const

const simulations = {
  plain,
  locks: Simulation.run({ ...locks, seed: 7, steps: 300 }),
  queues: Simulation.run({ ...queues, seed: 7, steps: 300 }),
  caches: Simulation.run({ ...caches, seed: 7, steps: 300 }),
  broadcasts: Simulation.run({ ...broadcasts, seed: 7, steps: 300, faults: all, invariants: [] }),
  syncs: Simulation.run({ ...syncs, seed: 7, steps: 300, faults: all }),
  plugins: Simulation.run({ ...plugins, seed: 7, steps: 300 })
}

/** The hashes, one for each simulation. */
export const hashes: Effect.Effect<Record<string, string>, Simulation.SimulationFailed> = Effect.all(
  Object.fromEntries(
    Object.entries(simulations).map(([name, simulation]) => [
      name,
      Effect.map(simulation, ({ timeline }) => createHash("sha256").update(timeline()).digest("hex"))
    ])
  )
)

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  console.log(JSON.stringify(await Effect.runPromise(hashes), undefined, 2))
}
