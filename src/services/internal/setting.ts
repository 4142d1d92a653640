/**
 * Settings: what the environment may say, each declared once, for the code that reads it and for the
 * table in `docs/configuration.md`. One that is empty is one that is not set.
 */
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import type * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { InvalidInput } from "../Reason.ts"

export interface Setting<A> {
  readonly name: string
  readonly type: string
  /** In words. */
  readonly default: string
  readonly meaning: string
  /** `undefined` when it is not set; what is wrong is told with the name. */
  readonly config: Config.Config<A | undefined>
}

type Declare<A> = (name: string, byDefault: string, meaning: string) => Setting<A>

const kind =
  <A>(type: string, read: (name: string) => Config.Config<A>): Declare<A> =>
  (name, byDefault, meaning) => ({
    name,
    type,
    default: byDefault,
    meaning,
    config: Config.flatMap(Config.option(Config.String(name)), (text) =>
      Option.isNone(text) || text.value === "" ? Config.succeed(undefined) : read(name)
    )
  })

export const text: Declare<string> = kind("text", Config.String)

export const secret: Declare<Redacted.Redacted<string>> = kind("secret", Config.Redacted)

export const url: Declare<URL> = kind("URL", Config.URL)

export const boolean: Declare<boolean> = kind("`true` or `false`", Config.Boolean)

const PositiveDuration = Schema.String.check(
  Schema.makeFilter((text) => {
    // What comes from outside is any text.
    const duration = Duration.fromInput(text as Duration.Input)
    if (Option.isNone(duration)) return "Expected a duration, such as `5 seconds`"
    return Duration.isGreaterThan(duration.value, Duration.zero) && Duration.isFinite(duration.value)
      ? undefined
      : "Expected a duration of more than 0"
  })
)

export const duration: Declare<Duration.Duration> = kind("duration, such as `5 seconds`", (name) =>
  Config.map(Config.schema(PositiveDuration, name), (text) => Duration.fromInputUnsafe(text as Duration.Input))
)

export const count = (minimum: number, maximum: number): Declare<number> =>
  kind(`whole number, ${minimum} to ${maximum}`, (name) =>
    Config.schema(
      Schema.NumberFromString.check(
        Schema.makeFilter((n) =>
          Number.isInteger(n) && n >= minimum && n <= maximum
            ? undefined
            : `Expected a whole number from ${minimum} to ${maximum}`
        )
      ),
      name
    )
  )

export const choice = <const A extends string>(choices: ReadonlyArray<A>): Declare<A> =>
  kind(choices.map((choice) => `\`${choice}\``).join(", "), (name) => Config.Literals(choices, name))

/** `host:port,host:port`; an IPv6 host stands in brackets. */
export const addresses: Declare<ReadonlyArray<{ readonly host: string; readonly port?: number | undefined }>> = kind(
  "`host:port,…`",
  (name) =>
    Config.map(Config.String(name), (list) =>
      list
        .split(",")
        .map((address) => address.trim())
        .filter((address) => address !== "")
        .map((address) => {
          const port = /:(\d+)$/.exec(address)
          const host = (port === null ? address : address.slice(0, port.index)).replace(/^\[(.*)\]$/, "$1")
          return { host, port: port === null ? undefined : Number(port[1]) }
        })
    )
)

export type Settings = Readonly<Record<string, Setting<unknown>>>

export type Read<S extends Settings> = {
  readonly [K in keyof S]?: S[K] extends Setting<infer A> ? A : never
}

/** Reads all; what is not set is left out. */
export const all = <S extends Settings>(settings: S): Config.Config<Read<S>> =>
  Config.map(
    Config.all(Object.fromEntries(Object.entries(settings).map(([key, { config }]) => [key, config]))),
    (found) => Object.fromEntries(Object.entries(found).filter(([, value]) => value !== undefined)) as Read<S>
  )

/** Refuses options that were read but do not go together, naming the setting of the field that is wrong. */
export const refuse =
  <A>(read: (options: A) => unknown, nameOf: (field: string) => string) =>
  (options: A): Config.Config<A> => {
    const invalid = read(options)
    if (!(invalid instanceof InvalidInput)) return Config.succeed(options)
    const message = `${nameOf(invalid.field)}: ${invalid.detail}`
    return Config.fail(new ConfigProvider.SourceError({ message }))
  }
