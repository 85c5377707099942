// Fields, and what is wrong with them, in words beside them.

export const element = (id) => document.getElementById(id);

/** Tell of an error at a field, and go there; the line for it is named after the field. */
export function tell(field, message) {
  const line = element(`${field.id}-error`);
  line.textContent = message;
  line.hidden = false;
  field.setAttribute("aria-invalid", "true");
  field.focus();
}

/** Nothing is wrong any more with what is inside an element. */
export function forgive(inside) {
  for (const line of inside.querySelectorAll(".error")) line.hidden = true;
  for (const field of inside.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

/** Show or hide a button; if it was focused and is hidden, `next` is focused. */
export function show(button, isShown, next) {
  const wasFocused = document.activeElement === button;
  button.hidden = !isShown;
  if (wasFocused && !isShown) next.focus();
}

/** Enable or disable a button; who stood on it goes on to another one. */
export function enable(button, isEnabled, next) {
  if (!isEnabled && document.activeElement === button) next.focus();
  button.disabled = !isEnabled;
}
