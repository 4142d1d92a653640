import { it } from "@effect/vitest"
import { Effect, Layer, Random } from "effect"
import { Invariant, Simulation } from "cohort/testing"
import * as Mailing from "./Mailing.ts"
import { Outbox } from "./Outbox.ts"

const someone = Effect.map(Random.nextIntBetween(1, 5), (n) => `reader-${n}@example.org`)

it.effect("no mail is lost, and all instances come to know who has unsubscribed, whatever happens to them", () =>
  Simulation.run({
    seed: 7,
    instances: 3,
    plugins: [Mailing.Mailing],
    services: Mailing.Blocklist.layer,
    shared: Layer.merge(Outbox.layer, Mailing.Wishes.layerMemory),
    workload: {
      send: { weight: 3, run: Effect.flatMap(someone, (to) => Mailing.send(to, "news")) },
      unsubscribe: Effect.flatMap(someone, Mailing.unsubscribe)
    },
    invariants: [
      Invariant.noJobLost,
      Invariant.converges(
        "blocklists",
        Mailing.Blocklist.useSync((blocklist) => [...blocklist].sort())
      )
    ],
    steps: 200
  })
)
