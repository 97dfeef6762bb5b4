// Search, filter and sort the cards; `/` leads to the search.
const box = document.querySelector('.cards');
const cards = [...box.querySelectorAll('.card')];
const [find, sort, show] = ['find', 'sort', 'show'].map(id => document.getElementById(id));
function filter() {
  const words = find.value.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const card of cards) {
    const text = card.textContent.toLowerCase();
    card.hidden = !words.every(word => text.includes(word)) || !!show?.value && !card.dataset.is.split(' ').includes(show.value);
    shown += !card.hidden;
  }
  document.getElementById('count').textContent = shown === 1 ? '1 image' : `${shown} images`;
}
find.oninput = filter;
if (show) show.onchange = filter;
if (sort) sort.onchange = () => {
  const [key, sign] = sort.value.split(' ');
  cards.sort((a, b) => sign * ((a.dataset[key] ?? Infinity) - (b.dataset[key] ?? Infinity)));
  box.append(...cards);
};
addEventListener('keydown', event => {
  if (event.key === '/' && !/INPUT|SELECT/.test(document.activeElement.tagName)) {
    event.preventDefault();
    find.focus();
  }
});
