#!/usr/bin/env node
/**
 * The runnable host: `start` runs instances until Ctrl-C, `demo` plays the guide's
 * scenarios on them and exits.
 */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Console from "effect/Console"
import * as CliError from "effect/cli/CliError"
import * as CliOutput from "effect/cli/CliOutput"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Backing from "./host/Backing.ts"
import * as Commands from "./host/commands.ts"
import * as Demo from "./host/Demo.ts"
import * as Host from "./host/Host.ts"
import { describe, ofConfig, Refused } from "./host/Refused.ts"
import * as Report from "./host/Report.ts"
import * as Server from "./host/Server.ts"
import * as Settings from "./host/settings.ts"
import * as Signals from "./host/Signals.ts"
import * as Cohort from "./layers/Cohort.ts"
import * as MemoryHub from "./layers/memory/MemoryHub.ts"
import { CsvFiles } from "./plugins/data-source-main/index.ts"

/** Says what went wrong in one line, and ends with exit code 1. */
const reported = <A, E, R>(run: Effect.Effect<A, E, R>): Effect.Effect<void, never, R> =>
  Effect.catch(Effect.asVoid(run), (error) =>
    Effect.andThen(
      // What is wrong with flags and arguments has been said.
      CliError.isCliError(error) ? Effect.void : Console.error(`cohort: ${describe(error)}`),
      Effect.sync(() => {
        process.exitCode = 1
      })
    )
  )

/** Wrong flags and arguments are told in a line, too, instead of below all of the help. */
const presenter = CliOutput.layerPresenter({
  present: (event) =>
    event._tag === "InvalidInvocation"
      ? Effect.forEach(
          event.errors,
          ({ message }) => {
            const command = event.commandPath.join(" ")
            const what = message
              .trim()
              .replace("Expected: Schema validation failed: ", "")
              .replaceAll(/\s*\n\s*/g, " ")
            return Console.error(`${command}: ${what} (see ${command} --help)`)
          },
          { discard: true }
        )
      : CliOutput.defaultPresenter.present(event)
})

const counted = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`

const instanceNames = (count: number): ReadonlyArray<string> =>
  Array.from({ length: count }, (_, i) => (count <= 26 ? String.fromCharCode(97 + i) : `i${i + 1}`))

const instances = (minimum: number) =>
  Flag.Int("instances").pipe(
    Flag.withDescription("How many instances to run; default: COHORT_INSTANCES, or 3"),
    Flag.withSchema(Schema.Int.check(Schema.isBetween({ minimum, maximum: 64 }))),
    Flag.optional
  )
const backendNames = Cohort.backends.join(", ").replace(/, (\w+)$/, " or $1")
// Any text is taken here, so that a wrong one is told as one in the environment is.
const backendOf = (description: string) =>
  Flag.String("backend").pipe(
    Flag.withDescription(`${backendNames}${description}; default: COHORT_BACKEND, or memory`),
    Flag.withDefault("")
  )
const backend = backendOf(
  " (a process for each instance, on the servers that REDIS_URL or AMQP_URL name, or on private ones)"
)
const app = Flag.String("app").pipe(
  Flag.withDescription("Name of the application; default: COHORT_APP, or cohort-host"),
  Flag.withSchema(Schema.NonEmptyString),
  Flag.optional
)
const files = Flag.String("files").pipe(
  Flag.withDescription(
    "Directory of the CSV files that may be imported; default: COHORT_FILES, or the data of the vega-datasets package"
  ),
  Flag.withDefault("")
)

/** The directory of the data sets that the vega-datasets package ships. */
const datasetDirectory = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const main = yield* Effect.try({
    try: () => import.meta.resolve("vega-datasets"),
    catch: () =>
      new Refused({
        detail:
          "there are no CSV files to import: npm install vega-datasets, or name a directory of yours with --files " +
          "(the demo imports zipcodes.csv)"
      })
  })
  const directory = path.join(path.dirname(yield* path.fromFileUrl(new URL(main))), "..", "data")
  return (yield* fs.exists(directory)) ? directory : yield* new Refused({ detail: `there is no ${directory}` })
})

/** The directory of the CSV files. */
const directoryOf = (flag: string, setting: string | undefined) =>
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    const files = flag === "" ? setting : flag
    if (files === undefined) return yield* datasetDirectory
    if (yield* fs.exists(files)) return files
    const name = flag === "" ? Settings.hostSettings.files.name : "--files"
    return yield* new Refused({ detail: `${name}: there is no ${files}` })
  })

/** Running instances, and an effect that fails when they cannot go on. */
interface Running {
  readonly instances: ReadonlyArray<Host.RunningInstance>
  readonly where: string
  readonly failed: Effect.Effect<never, unknown>
}

/** Which backend each primitive runs on: as the environment says, with `--backend` for `COHORT_BACKEND`. */
const backendsOf = (flag: string): Effect.Effect<Cohort.Backends, Refused> =>
  Effect.gen(function* () {
    const isBackend = Schema.is(Schema.Literals(Cohort.backends))
    if (flag !== "" && !isBackend(flag)) {
      return yield* new Refused({ detail: `--backend: must be ${backendNames}, got "${flag}"` })
    }
    const settings = yield* Effect.mapError(Cohort.backendConfig, ofConfig)
    return Cohort.backendsOf(flag === "" ? settings : { ...settings, backend: flag })
  })

const inWords = ({ cache, lock, pubsub, queue }: Cohort.Backends): string =>
  new Set([cache, lock, pubsub, queue]).size === 1
    ? `the ${cache} backend`
    : `cache: ${cache}, lock: ${lock}, queue: ${queue}, pubsub: ${pubsub}`

/** Starts instances that share this process's memory, or processes that share servers. */
const startAll = (options: {
  readonly backend: string
  readonly app: Option.Option<string>
  readonly instances: Option.Option<number>
  readonly port: Option.Option<number>
  readonly files: string
  readonly isDemo: boolean
}): Effect.Effect<Running, unknown, Scope.Scope | NodeServices.NodeServices> =>
  Effect.gen(function* () {
    const backends = yield* backendsOf(options.backend)
    const settings = yield* Settings.read
    const directory = yield* directoryOf(options.files, settings.files)
    const names = instanceNames(Option.getOrElse(options.instances, () => settings.instances ?? 3))
    if (options.isDemo && names.length < 2) {
      return yield* new Refused({ detail: `${Settings.hostSettings.instances.name}: the demo needs two or more` })
    }
    const port = options.isDemo ? 0 : Option.getOrElse(options.port, () => settings.port ?? 3_000)
    // What a demo stores where others store as well is removed when it ends.
    const app = options.isDemo
      ? `cohort-demo-${SecureRandom.uuidV4Unsafe()}`
      : Option.getOrElse(options.app, () => settings.app ?? "cohort-host")
    if (Object.values(backends).some((backend) => backend !== "memory")) {
      const Supervisor = yield* Effect.promise(() => import("./host/Supervisor.ts"))
      const { failed, instances, servers } = yield* Supervisor.start({
        backends,
        app,
        names,
        port,
        files: directory,
        logLevel: options.isDemo ? "error" : "info",
        temporary: options.isDemo
      })
      const where = `on ${inWords(backends)} (${servers}), a process each, ${yield* Backing.dataIn("Redis")}`
      return { instances, where, failed }
    }
    const shared = yield* Effect.mapError(Cohort.config, ofConfig)
    const hub = yield* MemoryHub.make
    for (const kind of yield* Backing.database) {
      const { forget } = yield* Server.make(kind)
      if (options.isDemo) yield* Effect.addFinalizer(() => forget(app))
    }
    const stores = Layer.succeedContext(yield* Layer.build(Host.storesMemory))
    const csv = Layer.succeedContext(yield* Layer.build(CsvFiles.layerDirectory(directory)))
    // A second signal does not wait for what drains, as it does not where instances are processes.
    const hurry = yield* Signals.second
    yield* Effect.forkScoped(
      Effect.andThen(
        Deferred.await(hurry),
        Effect.sync(() => process.exit(130))
      )
    )
    // They stop at the same time, each in its order.
    const all = yield* Scope.fork(yield* Scope.Scope, "parallel")
    const instances = yield* Effect.forEach(names, (id, i) =>
      Effect.flatMap(Scope.fork(all), (scope) =>
        Host.start({
          app,
          id,
          port: port === 0 ? 0 : port + i,
          services: Layer.merge(
            Backing.withStores(Cohort.layerMixed({ ...shared, ...backends, app, id, hub }), stores),
            csv
          )
        }).pipe(Scope.provide(scope))
      )
    )
    return { instances, where: `on the memory backend, ${yield* Backing.dataIn("memory")}`, failed: Effect.never }
  })

const start = Command.make(
  "start",
  {
    backend,
    instances: instances(1),
    app,
    files,
    port: Flag.Int("port").pipe(
      Flag.withDescription(
        "Port of the first instance; the others follow. 0 takes free ones; default: COHORT_PORT, or 3000"
      ),
      Flag.withSchema(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 65_000 }))),
      Flag.optional
    )
  },
  (options) =>
    Effect.scoped(
      Effect.gen(function* () {
        let started = false
        yield* Effect.addFinalizer(() => (started ? Console.log("Stopped.") : Effect.void))
        const running = yield* startAll({ ...options, isDemo: false })
        started = true
        yield* Console.log(`${counted(running.instances.length, "instance")} ${running.where}:`)
        for (const { id, url } of running.instances)
          yield* Console.log(`  ${id}  ${url}  (console: ${url}/console, API pages: ${url}/docs)`)
        yield* Console.log("Ctrl-C drains and stops.")
        yield* Effect.addFinalizer(() => Console.log("\nStopping: running tasks may finish, or are given back …"))
        return yield* running.failed
      })
    ).pipe(reported)
).pipe(Command.withDescription("Run instances until Ctrl-C"))

const demo = Command.make("demo", { backend, instances: instances(2), files }, (options) =>
  Effect.scoped(
    Effect.gen(function* () {
      const running = yield* startAll({ ...options, app: Option.none(), port: Option.none(), isDemo: true })
      yield* Console.log(`Cohort demo: ${running.instances.length} instances ${running.where}`)
      for (const { id, url } of running.instances) yield* Console.log(`  ${id}  ${url}`)
      const report = Report.make({ terminal: process.stdout.isTTY === true })
      yield* Effect.raceFirst(
        Effect.provide(Demo.play(running.instances, report), NodeHttpClient.layerUndici),
        running.failed
      )
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

const commands = Commands.make(
  { backend: backendOf(""), app },
  (options) =>
    Effect.map(Effect.mapError(Cohort.instanceSettings.app.config, ofConfig), (name) => ({
      backends: backendsOf(options.backend),
      app: Option.getOrElse(options.app, () => name ?? "cohort-host")
    })),
  reported
)

/** What the supervisor starts; of no use to anyone else. */
const instance = Command.make(
  "instance",
  { id: Flag.String("id"), app: Flag.String("app"), port: Flag.Int("port"), files: Flag.String("files") },
  (options) =>
    Effect.flatMap(
      Effect.promise(() => import("./host/Child.ts")),
      (Child) => Child.run(options)
    )
).pipe(Command.unlisted)

Command.make("cohort").pipe(
  Command.withDescription("Runs instances of an application, and looks after a cluster of them"),
  Command.withSubcommands([start, demo, ...commands, instance]),
  Command.run({ version: "0.2.0" }),
  Effect.provide(Layer.merge(Settings.layer, presenter)),
  reported,
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain
)
