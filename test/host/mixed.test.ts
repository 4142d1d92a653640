/** The plugins on a mix: caches and locks on Redis, queue and broadcast on RabbitMQ. */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Demo from "../../src/host/Demo.ts"
import * as Host from "../../src/host/Host.ts"
import type * as Report from "../../src/host/Report.ts"
import * as Cohort from "../../src/layers/Cohort.ts"
import { CsvFiles } from "../../src/plugins/data-source-main/index.ts"
import * as RabbitServer from "../servers/RabbitServer.ts"
import * as RedisServer from "../servers/RedisServer.ts"

it.live(
  "every scenario of the demo goes as it should, each primitive on its backend",
  () =>
    Effect.gen(function* () {
      const redis = yield* RedisServer.make()
      const rabbit = yield* RabbitServer.make()
      const environment = (id: string) =>
        ConfigProvider.fromUnknown({
          COHORT_APP: "mixed",
          COHORT_INSTANCE: id,
          COHORT_BACKEND: "amqp",
          COHORT_CACHE: "redis",
          COHORT_LOCK: "redis",
          REDIS_URL: redis.url,
          AMQP_URL: rabbit.url
        })
      const directory = new URL("../../node_modules/vega-datasets/data", import.meta.url).pathname
      const stores = Layer.succeedContext(
        yield* Layer.build(Layer.mergeAll(Host.storesMemory, CsvFiles.layerDirectory(directory)))
      )
      const instances = yield* Effect.forEach(["a", "b", "c"], (id) =>
        Host.start({
          app: "mixed",
          id,
          port: 0,
          services: Layer.merge(Layer.provide(Cohort.layerConfig, ConfigProvider.layer(environment(id))), stores)
        })
      )

      const lines: Array<string> = []
      const say = (text: string) => Effect.sync(() => void lines.push(text))
      const report: Report.Report = {
        heading: say,
        note: say,
        progress: () => Effect.void,
        step: (name, run) =>
          Effect.matchCauseEffect(run, {
            onSuccess: () => say(`right: ${name}`),
            onFailure: (cause) => say(`wrong: ${name}: ${cause}`)
          }),
        result: Effect.succeed({ right: 0, wrong: 0 })
      }
      yield* Demo.play(instances, report).pipe(Effect.provide(NodeHttpClient.layerUndici))
      assert.deepStrictEqual(
        lines.filter((line) => line.startsWith("wrong")),
        []
      )
      assert.lengthOf(
        lines.filter((line) => line.startsWith("right")),
        11
      )

      const keys = ((yield* redis.command("KEYS", "*")) as ReadonlyArray<string>).join("\n")
      assert.match(keys, /cache/)
      assert.match(keys, /lock/)
      assert.notMatch(keys, /queue/)
      const queues = yield* rabbit.control("list_queues", "--no-table-headers", "name")
      assert.match(queues, /^cohort\.jobs\./m)
    }).pipe(Effect.provideService(References.MinimumLogLevel, "Error"), Effect.provide(NodeServices.layer)),
  120_000
)
