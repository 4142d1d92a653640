/** The dead letters of a channel, and what may be done about them. */
import { $, clock, h, kept, say, table } from "./dom.js"
import { post, token } from "./token.js"

const limit = 50
let offset = 0
let shown = []
let total = 0
let chosen = ""
const selected = new Set()

const action = async (what, ids) => {
  const all = ids === "all"
  if (
    what === "discard" &&
    !(await isSure(all ? `all dead letters of ${chosen}` : ids.length === 1 ? ids[0] : `${ids.length} dead letters`))
  )
    return
  const { body, status } = await post(what, { channel: chosen, ids })
  if (status === 200) {
    for (const id of all ? [...selected] : ids) selected.delete(id)
    say(`${body.count} ${what === "redrive" ? "redriven" : "discarded"}`, "good")
  } else say(`Not done: ${body?.detail ?? `status ${status}`}`, "bad")
  await load()
}

const isSure = (what) =>
  new Promise((resolve) => {
    const dialog = $("sure-dialog")
    $("h-sure").textContent = `Discard ${what}?`
    let sure = false
    $("sure-ok").onclick = () => {
      sure = true
      dialog.close()
    }
    $("sure-cancel").onclick = () => dialog.close()
    dialog.addEventListener("close", () => resolve(sure), { once: true })
    dialog.showModal()
  })

const pretty = (json) => {
  try {
    return JSON.stringify(JSON.parse(json), undefined, 2)
  } catch {
    return json
  }
}

const check = kept((id) => {
  const box = h("input", { type: "checkbox", "aria-label": `Select ${id}` })
  box.addEventListener("change", () => {
    if (box.checked) selected.add(id)
    else selected.delete(id)
    buttons()
  })
  return box
})
const buttonsOf = kept((id) =>
  h(
    "span",
    { class: "bar" },
    h("button", { click: () => action("redrive", [id]), "aria-label": `Redrive ${id}` }, "Redrive"),
    h("button", { class: "danger", click: () => action("discard", [id]), "aria-label": `Discard ${id}` }, "Discard")
  )
)
const detailsOf = kept((_, letter) => {
  return h(
    "details",
    {},
    h("summary", { "aria-label": `Inspect ${letter.id}` }, letter.lastError.split("\n", 1)[0] || "no message"),
    h("p", {}, "Payload"),
    h("pre", { class: "payload" }, pretty(letter.encoded)),
    h("p", {}, `First error`),
    h("pre", {}, letter.firstError),
    h("p", {}, "Last error"),
    h("pre", {}, letter.lastError)
  )
})

const keyOf = ({ diedAt, id }) => `${chosen} ${id} ${diedAt}`
const draw = table(
  $("letters"),
  "Dead letters",
  [
    ["Select", ({ id }) => check(id)],
    ["Id", ({ id }) => id, "code"],
    ["Why", ({ reason }) => reason],
    ["Attempts", ({ attempts }) => attempts, "number"],
    ["Died", ({ diedAt }) => clock(diedAt), "nowrap"],
    ["Error and payload", (letter) => detailsOf(keyOf(letter), letter)],
    ["Actions", ({ id }) => (token() === null ? "" : buttonsOf(id))]
  ],
  keyOf,
  "None"
)

const buttons = () => {
  const may = token() !== null && total > 0
  $("bulk").hidden = !may
  $("redrive-selected").disabled = $("discard-selected").disabled = selected.size === 0
  $("older").hidden = offset === 0
  $("newer").hidden = offset + limit >= total
  $("range").textContent =
    total === 0 ? "" : `${offset + 1}–${Math.min(offset + limit, total)} of ${total}, oldest first`
}

const load = async () => {
  if (chosen === "") return
  const query = new URLSearchParams({ channel: chosen, offset: String(offset), limit: String(limit) })
  const response = await fetch(`console/api/dead-letters?${query}`).catch(() => undefined)
  if (response?.ok !== true) return
  shown = await response.json()
  if (shown.length === 0 && offset > 0) {
    offset = Math.max(0, offset - limit)
    return load()
  }
  redraw()
}

export const redraw = () => {
  draw(shown)
  for (const { id } of shown) check(id).checked = selected.has(id)
  buttons()
}

const choose = (channel) => {
  chosen = channel
  $("channel").value = channel
  offset = 0
  selected.clear()
  return load()
}

export const inspect = (channel) => {
  $("dead").scrollIntoView()
  $("channel").focus({ preventScroll: true })
  return choose(channel)
}

let was = ""
export const update = (channels) => {
  const names = channels.map(({ channel }) => channel)
  const options = [...$("channel").options].map(({ value }) => value)
  if (names.join("\n") !== options.join("\n")) {
    $("channel").replaceChildren(...names.map((name) => h("option", { value: name }, name)))
    $("channel").value = chosen
  }
  if (!names.includes(chosen)) {
    const first = channels.find(({ depth }) => depth.value?.dead > 0) ?? channels[0]
    if (first !== undefined) choose(first.channel)
  }
  const dead = channels.find(({ channel }) => channel === chosen)?.depth.value?.dead
  if (dead === undefined) return
  total = dead
  const now = `${chosen} ${dead}`
  if (now !== was) load()
  was = now
  buttons()
}

$("channel").addEventListener("change", () => choose($("channel").value))
$("older").addEventListener("click", () => {
  offset = Math.max(0, offset - limit)
  load()
})
$("newer").addEventListener("click", () => {
  offset += limit
  load()
})
for (const what of ["redrive", "discard"]) {
  $(`${what}-selected`).addEventListener("click", () => action(what, [...selected]))
  $(`${what}-all`).addEventListener("click", () => action(what, "all"))
}
