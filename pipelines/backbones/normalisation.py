"""The means and standard deviations that families normalise by, for pixels scaled to 0..1."""

# What a mean and a deviation can be: wide enough for pixels scaled to 0..255. Behind them a division by the deviation
# leaves float32, or every pixel becomes one number.
LEAST_MEAN, LEAST_STD, MOST = 0.0, 1e-3, 1e3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
