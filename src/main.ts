/**
 * The runnable host: `start` runs instances until Ctrl-C, `demo` plays the guide's
 * scenarios on them and exits.
 */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Console from "effect/Console"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Demo from "./host/Demo.ts"
import * as Host from "./host/Host.ts"
import * as Report from "./host/Report.ts"
import * as Cohort from "./layers/Cohort.ts"
import * as MemoryHub from "./layers/memory/MemoryHub.ts"
import { CsvFiles } from "./plugins/data-source-main/index.ts"

/** Why a run cannot go on, in words for whoever started it. */
class Refused extends Schema.TaggedError<Refused>("cohort/main/Refused")("Refused", {
  detail: Schema.String
}) {
  override get message(): string {
    return this.detail
  }
}

/** Says what went wrong in one line, and ends with exit code 1. */
const reported = <A, E, R>(run: Effect.Effect<A, E, R>): Effect.Effect<void, never, R> =>
  Effect.catch(Effect.asVoid(run), (error) =>
    Effect.andThen(
      Console.error(`cohort: ${describe(error)}`),
      Effect.sync(() => {
        process.exitCode = 1
      })
    )
  )

const counted = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`

const describe = (error: unknown): string => {
  const reason = error instanceof Error && error.cause instanceof Error ? error.cause : error
  return reason instanceof Error ? reason.message : String(reason)
}

const instanceNames = (count: number): ReadonlyArray<string> =>
  Array.from({ length: count }, (_, i) => (count <= 26 ? String.fromCharCode(97 + i) : `i${i + 1}`))

const instances = (minimum: number) =>
  Flag.Int("instances").pipe(
    Flag.withDescription("How many instances to run"),
    Flag.withSchema(Schema.Int.check(Schema.isBetween({ minimum, maximum: 64 }))),
    Flag.withDefault(3)
  )
const app = Flag.String("app").pipe(
  Flag.withDescription("Name of the application"),
  Flag.withSchema(Schema.NonEmptyString),
  Flag.withDefault("cohort-host")
)
const files = Flag.String("files").pipe(
  Flag.withDescription(
    "Directory of the CSV files that may be imported; default: the data of the vega-datasets package"
  ),
  Flag.withDefault("")
)

/** The directory of the data sets that the vega-datasets package ships. */
const datasetDirectory = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const main = yield* Effect.try({
    try: () => import.meta.resolve("vega-datasets"),
    catch: () => new Refused({ detail: "the package vega-datasets is not installed: name a directory with --files" })
  })
  const directory = path.join(path.dirname(yield* path.fromFileUrl(new URL(main))), "..", "data")
  return (yield* fs.exists(directory)) ? directory : yield* new Refused({ detail: `there is no ${directory}` })
})

/** Starts instances that share this process's memory. */
const startAll = (options: {
  readonly app: string
  readonly instances: number
  readonly port: number
  readonly files: string
}): Effect.Effect<ReadonlyArray<Host.RunningInstance>, unknown, Scope.Scope | FileSystem.FileSystem | Path.Path> =>
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    const directory = options.files === "" ? yield* datasetDirectory : options.files
    if (!(yield* fs.exists(directory))) return yield* new Refused({ detail: `--files: there is no ${directory}` })
    const hub = yield* MemoryHub.make
    const stores = yield* Layer.build(Layer.mergeAll(Host.storesMemory, CsvFiles.layerDirectory(directory)))
    return yield* Effect.forEach(instanceNames(options.instances), (id, i) =>
      Host.start({
        id,
        port: options.port === 0 ? 0 : options.port + i,
        backend: Cohort.layerMemory({ app: options.app, id, hub }),
        stores
      })
    )
  })

const start = Command.make(
  "start",
  {
    instances: instances(1),
    app,
    files,
    port: Flag.Int("port").pipe(
      Flag.withDescription("Port of the first instance; the others follow. 0 takes free ones"),
      Flag.withSchema(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 65_000 }))),
      Flag.withDefault(3000)
    )
  },
  (options) =>
    Effect.scoped(
      Effect.gen(function* () {
        let started = false
        yield* Effect.addFinalizer(() => (started ? Console.log("Stopped.") : Effect.void))
        const running = yield* startAll(options)
        started = true
        yield* Console.log(`${counted(running.length, "instance")} on the memory backend:`)
        for (const { id, url } of running) yield* Console.log(`  ${id}  ${url}  (API pages: ${url}/docs)`)
        yield* Console.log("Ctrl-C drains and stops.")
        yield* Effect.addFinalizer(() => Console.log("\nStopping: running tasks may finish, or are given back …"))
        return yield* Effect.never
      })
    ).pipe(reported)
).pipe(Command.withDescription("Run instances until Ctrl-C"))

const demo = Command.make("demo", { instances: instances(2), files }, (options) =>
  Effect.scoped(
    Effect.gen(function* () {
      const running = yield* startAll({ ...options, app: "cohort-demo", port: 0 })
      yield* Console.log(`Cohort demo: ${running.length} instances on the memory backend`)
      for (const { id, url } of running) yield* Console.log(`  ${id}  ${url}`)
      const report = Report.make({ terminal: process.stdout.isTTY === true })
      yield* Effect.provide(Demo.play(running, report), NodeHttpClient.layerUndici)
      const { right, wrong } = yield* report.result
      yield* Console.log(`\n${wrong === 0 ? "All" : `${right} of`} ${right + wrong} steps went as they should.`)
      if (wrong > 0) return yield* new Refused({ detail: `${counted(wrong, "step")} went wrong` })
    })
  ).pipe(
    reported,
    // The report says what happened; warnings about the failures it provokes would only interrupt it.
    Effect.provideService(References.MinimumLogLevel, "Error")
  )
).pipe(Command.withDescription("Play the guide's five scenarios and exit"))

Command.make("cohort").pipe(
  Command.withDescription("Three plugins on Cohort"),
  Command.withSubcommands([start, demo]),
  Command.run({ version: "0.1.0" }),
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain
)
