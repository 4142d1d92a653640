/** All settings of the host, as `docs/configuration.md` has them; and where they come from. */
import type * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as AmqpOptions from "../layers/amqp/AmqpOptions.ts"
import * as Cohort from "../layers/Cohort.ts"
import * as RedisOptions from "../layers/redis/RedisOptions.ts"
import * as Setting from "../services/internal/setting.ts"
import * as Host from "./Host.ts"
import { describe, ofConfig, Refused } from "./Refused.ts"
import * as Database from "./sql/settings.ts"

/** What the commands read where their flags say nothing. */
export const hostSettings = {
  instances: Setting.count(1, 64)("COHORT_INSTANCES", "3", "How many instances to run"),
  port: Setting.count(0, 65_000)(
    "COHORT_PORT",
    "3000",
    "Port of the first instance; the others follow. 0 takes free ones"
  ),
  files: Setting.text("COHORT_FILES", "the data of vega-datasets", "Directory of the CSV files that may be imported")
}

export interface Section {
  readonly title: string
  readonly settings: Readonly<Record<string, Setting.Setting<unknown>>>
  /** How the code reads them. */
  readonly config: Config.Config<unknown>
}

export const sections: ReadonlyArray<Section> = [
  { title: "Backends", settings: Cohort.backendSettings, config: Cohort.backendConfig },
  {
    title: "Instances, and what applies where code says nothing",
    settings: { ...Cohort.instanceSettings, ...Cohort.defaultSettings },
    config: Cohort.config
  },
  { title: "Redis", settings: RedisOptions.settings, config: RedisOptions.config },
  { title: "RabbitMQ", settings: AmqpOptions.settings, config: AmqpOptions.config },
  { title: "PostgreSQL", settings: Database.settings, config: Database.config },
  { title: "The host", settings: hostSettings, config: Setting.all(hostSettings) },
  { title: "Instances of the host", settings: Host.settings, config: Setting.all(Host.settings) }
]

/** What the commands read. */
export const read = Effect.mapError(Setting.all({ app: Cohort.instanceSettings.app, ...hostSettings }), ofConfig)

/** The environment first, then what `.env` in the working directory says, if there is one. */
export const layer: Layer.Layer<never, Refused, FileSystem.FileSystem> = Layer.unwrap(
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    const environment = ConfigProvider.fromEnv()
    const isThere = yield* Effect.orElseSucceed(fs.exists(".env"), () => false)
    if (!isThere) return ConfigProvider.layer(environment)
    const file = yield* Effect.mapError(
      ConfigProvider.fromDotEnv(),
      (error) => new Refused({ detail: `.env: ${describe(error)}` })
    )
    return ConfigProvider.layer(ConfigProvider.orElse(environment, file))
  })
)
