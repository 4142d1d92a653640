/**
 * One instance as a process of its own, on the backends that its environment names;
 * started by the {@link Supervisor}.
 *
 * It says where it listens, or why it cannot start, on {@link messagesFd}. It stops,
 * draining, on SIGTERM, and when its input ends: the supervisor is gone then. One that takes longer than
 * {@link Host.stopWithin} to do so ends undrained.
 */
import { writeSync } from "node:fs"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as Cohort from "../layers/Cohort.ts"
import { CsvFiles } from "../plugins/data-source-main/index.ts"
import * as Backing from "./Backing.ts"
import * as Host from "./Host.ts"
import { describe, ofConfig } from "./Refused.ts"

/** What a child tells its supervisor, one line of JSON each. */
export const Message = Schema.fromJsonString(
  Schema.Union([
    Schema.Struct({ _tag: Schema.tag("Listening"), url: Schema.String }),
    Schema.Struct({ _tag: Schema.tag("Failed"), detail: Schema.String })
  ])
)

export const messagesFd = 3

const tell = (message: typeof Message.Type) =>
  Effect.flatMap(Effect.orDie(Schema.encodeEffect(Message)(message)), (line) =>
    Effect.ignore(Effect.try(() => writeSync(messagesFd, `${line}\n`)))
  )

const exit = (code: number) =>
  Effect.sync(() => {
    process.exit(code)
  })

export const run = (options: {
  readonly id: string
  readonly app: string
  readonly port: number
  readonly files: string
}) =>
  Effect.gen(function* () {
    const stdio = yield* Stdio.Stdio
    const orphaned = yield* Effect.cached(Effect.ignore(Stream.runDrain(stdio.stdin)))
    const settings = yield* Effect.mapError(Cohort.config, ofConfig)
    const stopWithin = yield* Effect.mapError(Host.stopWithin, ofConfig)
    const files = yield* Layer.build(CsvFiles.layerDirectory(options.files))
    const services = Layer.merge(
      Backing.withStores(Cohort.layerMixed({ ...settings, app: options.app, id: options.id })),
      Layer.succeedContext(files)
    )
    const serve = Effect.gen(function* () {
      const { url } = yield* Host.start({ app: options.app, id: options.id, port: options.port, services })
      yield* tell({ _tag: "Listening", url })
      yield* orphaned
      yield* Effect.logWarning("The supervisor is gone: stopping")
    }).pipe(Effect.scoped)
    yield* Effect.raceFirst(serve, Effect.andThen(orphaned, Effect.delay(exit(1), stopWithin)))
  }).pipe(
    Effect.scoped,
    Effect.annotateLogs({ instance: options.id }),
    Effect.catch((error) => Effect.andThen(tell({ _tag: "Failed", detail: describe(error) }), exit(1)))
  )
