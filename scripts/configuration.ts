/** Writes `docs/configuration.md` from the settings that the code reads. */
import { writeFileSync } from "node:fs"
import path from "node:path"
import { sections } from "../src/host/settings.ts"

const cell = (text: string): string => text.replaceAll("|", "\\|")

/** The page, as it should be. */
export const page = (): string =>
  [
    "# Configuration",
    "",
    "<!-- Written by `npm run docs:configuration`. -->",
    "",
    "What `Cohort.layerConfig` and the host read from the environment. A value that makes no sense is an error that names its",
    "setting; an empty one counts as none. Secrets are `Redacted`: they are in no log and no error.",
    "",
    "For the host, a command line flag comes first, then the environment, then `.env` in the working directory, then the",
    "default. `Cohort.layerConfig` reads Effect's `ConfigProvider`, the environment by default; give it another for more:",
    "",
    "```ts",
    'import { NodeFileSystem } from "@effect/platform-node"',
    'import { ConfigProvider, Layer } from "effect"',
    'import { Cohort } from "cohort"',
    "",
    "export const Backend = Cohort.layerConfig.pipe(",
    "  // .env, where the environment says nothing",
    "  Layer.provide(ConfigProvider.layerAdd(ConfigProvider.fromDotEnv())),",
    "  Layer.provide(NodeFileSystem.layer)",
    ")",
    "```",
    "",
    ...sections.flatMap(({ settings, title }) => [
      `## ${title}`,
      "",
      "| name | type | default | meaning |",
      "| --- | --- | --- | --- |",
      ...Object.values(settings).map(({ default: byDefault, meaning, name, type }) =>
        ["", `\`${name}\``, cell(type), cell(byDefault), cell(meaning), ""].join(" | ").trim()
      ),
      ""
    ])
  ].join("\n")

if (import.meta.main) writeFileSync(path.join(import.meta.dirname, "..", "docs", "configuration.md"), page())
